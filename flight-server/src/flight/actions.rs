//! Actions that arrow-flight leaves to the server: sessions, and cancelling a FlightInfo.

use std::collections::HashMap;

use arrow_flight::sql::{Any, Command, TicketStatementQuery};
use arrow_flight::{Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, FlightInfo};
use bytes::Bytes;
use futures::{StreamExt, stream};
use prost::Message;
use tonic::metadata::MetadataMap;
use tonic::{Response, Status};

use super::protocol::{
    CANCEL_FLIGHT_INFO, CLOSE_SESSION, CloseSessionResult, CloseSessionStatus, GET_SESSION_OPTIONS,
    GetSessionOptionsResult, OptionValue, RENEW_FLIGHT_ENDPOINT, SET_SESSION_OPTIONS, SessionOptionValue,
    SetSessionOptionError, SetSessionOptionErrorValue, SetSessionOptionsRequest, SetSessionOptionsResult,
};
use super::service::{ActionStream, Service};
use super::session::{SESSION_COOKIE, Session};
use super::{internal, status};
use crate::error::Kind;
use crate::query::Settings;

/// The one catalog.
pub(super) const CATALOG: &str = "lake";

/// Names of session options, as the drivers spell them.
const OPTION_CATALOG: &str = "catalog";
const OPTION_SCHEMA: &str = "schema";

/// Names of settings of the query path.
const SEARCH_PATH: &str = "search_path";
const PUBLICATION: &str = "lakebeat.publication";

/// What `ListActions` answers: the actions that are done here.
pub(super) fn action_types() -> Vec<ActionType> {
    let named =
        |(name, description): (&str, &str)| ActionType { r#type: name.to_owned(), description: description.to_owned() };
    [
        ("CreatePreparedStatement", "Prepares a statement; its handle takes parameters and gives a FlightInfo."),
        ("ClosePreparedStatement", "Forgets a prepared statement."),
        ("CancelQuery", "Cancels the statement behind a FlightInfo (the older action)."),
        (CANCEL_FLIGHT_INFO, "Cancels the statement behind a FlightInfo."),
        (SET_SESSION_OPTIONS, "Sets catalog, schema, or a setting such as TimeZone for the session."),
        (GET_SESSION_OPTIONS, "Returns the options of the session."),
        (CLOSE_SESSION, "Ends the session; its options are gone."),
    ]
    .map(named)
    .to_vec()
}

impl Service {
    /// Answers an action by its name.
    ///
    /// Fails with `Unimplemented` for one that is not known.
    pub(super) async fn act(&self, metadata: &MetadataMap, action: &Action) -> Result<Response<ActionStream>, Status> {
        let session = self.sessions().caller(metadata)?;
        match action.r#type.as_str() {
            SET_SESSION_OPTIONS => self.set_session_options(metadata, &action.body).await,
            GET_SESSION_OPTIONS => Ok(answer(&session_options(&session))),
            CLOSE_SESSION => {
                self.sessions().close(&session);
                Ok(answer(&CloseSessionResult { status: CloseSessionStatus::Closed as i32 }))
            }
            CANCEL_FLIGHT_INFO => {
                let request: CancelFlightInfoRequest = decode(&action.body)?;
                let cancelled = self.cancel(session.user(), request.info.unwrap_or_default())?;
                Ok(answer(&CancelFlightInfoResult { status: cancelled as i32 }))
            }
            RENEW_FLIGHT_ENDPOINT => Err(Status::unimplemented(
                "tickets are not renewed: each use lets one live longer, and asking for the FlightInfo again gives a new one",
            )),
            other => Err(Status::unimplemented(format!("there is no action {other}: ListActions lists what there is"))),
        }
    }

    /// Ends the statements behind a FlightInfo, whether they run or wait for their ticket.
    pub(super) fn cancel(&self, user: &str, info: FlightInfo) -> Result<CancelStatus, Status> {
        let mut status = CancelStatus::NotCancellable;
        for endpoint in info.endpoint {
            let ticket = endpoint.ticket.unwrap_or_default().ticket;
            let Ok(Command::TicketStatementQuery(TicketStatementQuery { statement_handle })) =
                Any::decode(ticket).map_err(internal).and_then(|any| Command::try_from(any).map_err(internal))
            else {
                continue;
            };
            if let Some(planned) = self.tickets().remove(&statement_handle, user)? {
                planned.cancel();
                status = CancelStatus::Cancelled;
            }
        }
        Ok(status)
    }

    /// Sets what can be set and says which options cannot. A client without a session gets one, and its cookie.
    async fn set_session_options(
        &self,
        metadata: &MetadataMap,
        body: &Bytes,
    ) -> Result<Response<ActionStream>, Status> {
        let request: SetSessionOptionsRequest = decode(body)?;
        let caller = self.sessions().caller(metadata)?;
        let opened = caller.is_shared().then(|| self.sessions().open(caller.user()));
        let session = opened.as_deref().and_then(|key| self.sessions().find(key)).unwrap_or(caller);
        let mut errors = HashMap::new();
        for (name, value) in request.session_options {
            if let Err(error) = self.set_option(&session, &name, value.option_value).await? {
                errors.insert(name, SetSessionOptionError { value: error as i32 });
            }
        }
        let mut response = answer(&SetSessionOptionsResult { errors });
        if let Some(key) = opened {
            let cookie = format!("{SESSION_COOKIE}={key}; HttpOnly; SameSite=Strict").parse().map_err(internal)?;
            response.metadata_mut().insert("set-cookie", cookie);
        }
        Ok(response)
    }

    /// Sets one option; without a value it goes back to the default. What is not `catalog` or `schema` is a setting of the
    /// query path, such as `TimeZone`, `statement_timeout` or `lakebeat.publication`.
    async fn set_option(
        &self,
        session: &Session,
        name: &str,
        value: Option<OptionValue>,
    ) -> Result<Result<(), SetSessionOptionErrorValue>, Status> {
        let value = match value {
            None => None,
            Some(OptionValue::Text(text)) => Some(text),
            Some(OptionValue::Truth(truth)) => Some(truth.to_string()),
            Some(OptionValue::Integer(number)) => Some(number.to_string()),
            Some(OptionValue::Float(_) | OptionValue::Texts(_)) => {
                return Ok(Err(SetSessionOptionErrorValue::InvalidValue));
            }
        };
        if name == OPTION_CATALOG {
            let known = value.is_none_or(|catalog| catalog == CATALOG);
            return Ok(if known { Ok(()) } else { Err(SetSessionOptionErrorValue::InvalidValue) });
        }
        let (name, value) = match (name, value) {
            (OPTION_SCHEMA, Some(schema)) => {
                let snapshot = session.connection.snapshot().await.map_err(status)?;
                let catalog = snapshot.context().catalog(CATALOG);
                if !catalog.is_some_and(|catalog| catalog.schema_names().contains(&schema)) {
                    return Ok(Err(SetSessionOptionErrorValue::InvalidValue));
                }
                (SEARCH_PATH, Some(search_path(&schema)))
            }
            (OPTION_SCHEMA, None) => (SEARCH_PATH, None),
            (name, value) => (name, value),
        };
        // "default" is how a setting is told to go back.
        let set = session.connection.set(name, value.as_deref().unwrap_or("default")).await;
        Ok(set.map_err(|error| match error.kind() {
            Kind::InvalidSetting => SetSessionOptionErrorValue::InvalidValue,
            Kind::UndefinedObject if name == PUBLICATION => SetSessionOptionErrorValue::InvalidValue,
            Kind::UndefinedObject => SetSessionOptionErrorValue::InvalidName,
            _ => SetSessionOptionErrorValue::Error,
        }))
    }
}

fn session_options(session: &Session) -> GetSessionOptionsResult {
    let settings = session.connection.settings();
    let option = |(name, value): (&str, String)| {
        let value = SessionOptionValue { option_value: Some(OptionValue::Text(value)) };
        (name.to_owned(), value)
    };
    let schema = settings.search_path.first().cloned().unwrap_or_default();
    let named = [(OPTION_CATALOG, CATALOG.to_owned()), (OPTION_SCHEMA, schema)];
    let session_options = named.into_iter().chain(settings.all()).map(option).collect();
    GetSessionOptionsResult { session_options }
}

/// Looks in the chosen schema first, then where everybody looks.
fn search_path(schema: &str) -> String {
    let usual = Settings::default().search_path;
    let further = usual.iter().map(String::as_str).filter(|usual| *usual != schema);
    [schema].into_iter().chain(further).collect::<Vec<_>>().join(", ")
}

fn decode<M: Message + Default>(body: &Bytes) -> Result<M, Status> {
    M::decode(body.clone())
        .map_err(|error| Status::invalid_argument(format!("the body of the action cannot be decoded: {error}")))
}

fn answer(message: &impl Message) -> Response<ActionStream> {
    let result = arrow_flight::Result { body: message.encode_to_vec().into() };
    Response::new(stream::iter([Ok(result)]).boxed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chosen_schema_comes_first_and_once() {
        assert_eq!(search_path("silver"), "silver, gold, bronze");
        assert_eq!(search_path("system"), "system, gold, silver, bronze");
    }

    #[test]
    fn session_messages_have_the_wire_form_of_flight_proto() {
        // Field 1 (map entry): key "schema", value { string_value: "silver" }.
        let expected = b"\x0a\x12\x0a\x06schema\x12\x08\x0a\x06silver";
        let decoded = SetSessionOptionsRequest::decode(&expected[..]).expect("valid");
        let value = decoded.session_options.get("schema").and_then(|value| value.option_value.clone());
        assert_eq!(value, Some(OptionValue::Text("silver".to_owned())));
        assert_eq!(decoded.encode_to_vec(), expected);
    }
}
