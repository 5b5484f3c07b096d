//! The simple protocol: a text with one statement or several, answered in text.

use std::fmt::Debug;

use async_trait::async_trait;
use futures::{Sink, SinkExt};
use pgwire::api::portal::Format;
use pgwire::api::query::{SimpleQueryHandler, send_ready_for_query};
use pgwire::api::results::Response;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, PgWireConnectionState};
use pgwire::error::{PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::messages::response::{EmptyQueryResponse, TransactionStatus};
use pgwire::messages::simplequery::Query;

use super::answer::{
    Describe, complete, not_called, or_cancelled, run_session, send_row_description, send_rows, start,
};
use super::handler::Handler;
use super::session::Session;
use super::statement::{self, Command};

#[async_trait]
impl SimpleQueryHandler for Handler {
    /// All statements of a query message, in order; the first error ends it.
    async fn on_query<C>(&self, client: &mut C, query: Query) -> PgWireResult<()>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let session = self.session()?;
        session.next_group();
        let statements = statement::split(&query.query);
        if statements.is_empty() {
            client.feed(PgWireBackendMessage::EmptyQueryResponse(EmptyQueryResponse::new())).await?;
        }
        // Several statements in one message are one transaction, so they see one moment.
        let is_one_moment = statements.len() > 1 && client.transaction_status() == TransactionStatus::Idle;
        if is_one_moment {
            session.connection.pin_newest().await?;
        }
        let mut result = Ok(());
        for sql in statements {
            session.cancel.renew();
            result = run_simple(session, client, sql).await;
            if result.is_err() {
                break;
            }
        }
        if is_one_moment && client.transaction_status() == TransactionStatus::Idle {
            session.connection.unpin();
        }
        result?;
        client.set_state(PgWireConnectionState::ReadyForQuery);
        let status = client.transaction_status();
        send_ready_for_query(client, status).await
    }

    async fn do_query<C>(&self, _client: &mut C, _query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        Err(not_called())
    }
}

async fn run_simple<C>(session: &Session, client: &mut C, sql: &str) -> PgWireResult<()>
where
    C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
    C::PortalStore: PortalStore,
    C::Error: Debug,
    PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
{
    let command = statement::classify(sql)?;
    session.check(&command, client.transaction_status())?;
    let Command::Query { sql, tag } = &command else {
        return run_session(session, client, &command, &Format::UnifiedText, Describe::Yes).await;
    };
    let prepared = or_cancelled(session, session.connection.prepare(sql)).await?;
    let mut response = start(session, &prepared, Vec::new(), &Format::UnifiedText, tag).await?;
    send_row_description(client, &response.row_schema()).await?;
    let rows = send_rows(client, &mut response, usize::MAX).await?.rows;
    client.feed(complete(tag, rows)).await?;
    Ok(())
}
