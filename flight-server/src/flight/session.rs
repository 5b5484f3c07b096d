//! Who calls, and in which session.
//!
//! A client either logs in by Handshake (Basic) and sends the bearer token that it got with each call, or sends a bearer
//! token of its own, or keeps the cookie that `SetSessionOptions` gave it, or sends nothing. On the loopback door no
//! password is asked: the user name is taken as said. A session is a connection of the query path, so that its settings
//! (schema, time zone) hold for all calls that carry the token.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use chrono::{DateTime, Utc};
use lakehouse::Clock;
use tonic::Status;
use tonic::metadata::MetadataMap;
use uuid::Uuid;

use crate::query::{Connection, Door, QueryEngine};

/// The cookie that carries a session where no token does; its name is the one that Flight's own implementations use.
pub(super) const SESSION_COOKIE: &str = "arrow_flight_session_id";

/// The user of calls that say no name.
const ANONYMOUS: &str = "anonymous";

/// Characters of a token at most; a longer one is no token of anybody.
const TOKEN_BYTES_MAX: usize = 8 * 1024;

/// Go's client leaves out the padding, others send it.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// One client's session: its connection to the query path.
pub(super) struct Session {
    pub(super) connection: Connection,
    /// The token or cookie by which it is found; none for the session that all nameless calls share, whose settings
    /// therefore never change.
    key: Option<String>,
}

impl Session {
    /// The user's name, which owns what the session asks for.
    pub(super) fn user(&self) -> &str {
        self.connection.user()
    }

    /// Whether calls without a token or cookie share it.
    pub(super) fn is_shared(&self) -> bool {
        self.key.is_none()
    }
}

/// All sessions of the door.
pub(super) struct Sessions {
    engine: QueryEngine,
    clock: Arc<dyn Clock>,
    /// How long a session lives after its last call.
    lifetime: Duration,
    /// How many are kept; beyond it the one that has been quiet for longest goes.
    capacity: usize,
    /// The session of all calls that carry nothing.
    shared: Arc<Session>,
    open: Mutex<HashMap<String, Entry>>,
}

struct Entry {
    session: Arc<Session>,
    touched_at: DateTime<Utc>,
}

/// What an `authorization` header says.
#[derive(Debug, PartialEq)]
enum Credentials {
    Nothing,
    Basic { user: String },
    Bearer { token: String },
}

impl Sessions {
    pub(super) fn new(engine: QueryEngine, capacity: usize, lifetime: Duration) -> Self {
        let shared = Arc::new(Session { connection: engine.connect(Door::Flight, ANONYMOUS), key: None });
        let clock = Arc::clone(engine.lake().clock());
        Self { engine, clock, lifetime, capacity, shared, open: Mutex::default() }
    }

    /// Opens a session for whom the handshake names, and returns its bearer token.
    ///
    /// Fails with `Unauthenticated` when the header is not Basic, Bearer or missing.
    pub(super) fn log_in(&self, metadata: &MetadataMap) -> Result<String, Status> {
        match credentials(metadata)? {
            Credentials::Bearer { token } => {
                self.named(&token);
                Ok(token)
            }
            Credentials::Basic { user } => Ok(self.open(&user)),
            Credentials::Nothing => Ok(self.open(ANONYMOUS)),
        }
    }

    /// The session that a call belongs to.
    ///
    /// Fails with `Unauthenticated` when its header is not Basic, Bearer or missing.
    pub(super) fn caller(&self, metadata: &MetadataMap) -> Result<Arc<Session>, Status> {
        match credentials(metadata)? {
            Credentials::Bearer { token } => Ok(self.named(&token)),
            Credentials::Basic { user } => {
                Ok(Arc::new(Session { connection: self.engine.connect(Door::Flight, &user), key: None }))
            }
            Credentials::Nothing => {
                Ok(cookie(metadata).and_then(|key| self.find(key)).unwrap_or_else(|| Arc::clone(&self.shared)))
            }
        }
    }

    /// Opens a session for `user` and returns the key (token or cookie) by which it is found.
    pub(super) fn open(&self, user: &str) -> String {
        let key = Uuid::new_v4().simple().to_string();
        self.keep(&key, user);
        key
    }

    /// The session of a key that [`Self::open`] gave, if it still lives.
    pub(super) fn find(&self, key: &str) -> Option<Arc<Session>> {
        let now = self.clock.now();
        let mut open = self.lock();
        let entry = open.get_mut(key)?;
        if is_expired(entry, now, self.lifetime) {
            open.remove(key);
            return None;
        }
        entry.touched_at = now;
        Some(Arc::clone(&entry.session))
    }

    /// Ends a session; its settings are gone, and its token is a stranger's.
    pub(super) fn close(&self, session: &Session) {
        if let Some(key) = &session.key {
            self.lock().remove(key);
        }
    }

    /// The session of a bearer token. The loopback door asks for no login, so a token that it did not give out (one from
    /// before a restart, or from a driver that has only a token to send) opens a session too.
    fn named(&self, token: &str) -> Arc<Session> {
        self.find(token).unwrap_or_else(|| self.keep(token, ANONYMOUS))
    }

    fn keep(&self, key: &str, user: &str) -> Arc<Session> {
        let now = self.clock.now();
        let connection = self.engine.connect(Door::Flight, user);
        let session = Arc::new(Session { connection, key: Some(key.to_owned()) });
        let mut open = self.lock();
        if open.len() >= self.capacity {
            open.retain(|_, entry| !is_expired(entry, now, self.lifetime));
        }
        if open.len() >= self.capacity {
            let quietest = open.iter().min_by_key(|(_, entry)| entry.touched_at).map(|(key, _)| key.clone());
            quietest.map(|key| open.remove(&key));
        }
        open.insert(key.to_owned(), Entry { session: Arc::clone(&session), touched_at: now });
        session
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        // Each critical section leaves the map whole, so a panic elsewhere is no reason to stop serving.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_expired(entry: &Entry, now: DateTime<Utc>, lifetime: Duration) -> bool {
    (now - entry.touched_at).to_std().is_ok_and(|age| age > lifetime)
}

fn credentials(metadata: &MetadataMap) -> Result<Credentials, Status> {
    let Some(header) = metadata.get("authorization") else { return Ok(Credentials::Nothing) };
    let refuse = || {
        Status::unauthenticated(
            "the authorization header is neither 'Basic <base64 of user:password>' nor 'Bearer <token>'",
        )
    };
    let header = header.to_str().map_err(|_| refuse())?;
    let (scheme, value) = header.split_once(' ').ok_or_else(refuse)?;
    let value = value.trim();
    match scheme.to_ascii_lowercase().as_str() {
        "bearer" if !value.is_empty() && value.len() <= TOKEN_BYTES_MAX => {
            Ok(Credentials::Bearer { token: value.to_owned() })
        }
        "basic" => {
            let decoded = BASE64.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            let decoded = decoded.ok_or_else(refuse)?;
            // The password may hold colons, and may be empty (the loopback door asks for none).
            let user = decoded.split_once(':').map_or(decoded.as_str(), |(user, _)| user);
            let user = if user.is_empty() { ANONYMOUS } else { user };
            Ok(Credentials::Basic { user: user.to_owned() })
        }
        _ => Err(refuse()),
    }
}

/// The session's cookie among those that the call carries.
fn cookie(metadata: &MetadataMap) -> Option<&str> {
    let headers = metadata.get_all("cookie").into_iter();
    headers
        .filter_map(|header| header.to_str().ok())
        .flat_map(|header| header.split(';'))
        .filter_map(|pair| pair.trim().split_once('='))
        .find(|(name, _)| *name == SESSION_COOKIE)
        .map(|(_, value)| value.trim_matches('"'))
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn metadata(name: &'static str, value: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert(name, value.parse().expect("ascii"));
        metadata
    }

    #[test]
    fn headers_of_real_clients_are_understood() {
        let basic = |user: &str| Credentials::Basic { user: user.to_owned() };
        let bearer = |token: &str| Credentials::Bearer { token: token.to_owned() };
        for (header, expected) in [
            ("Basic YW5uOnNlY3JldA==", basic("ann")),
            // Go sends no padding; JDBC writes the scheme in its own case.
            ("Basic YW5uOnNlY3JldA", basic("ann")),
            ("basic YW5uOg==", basic("ann")),
            ("Basic Og==", basic("anonymous")),
            ("Bearer abc", bearer("abc")),
        ] {
            assert_eq!(credentials(&metadata("authorization", header)).expect(header), expected);
        }
        for header in ["Digest x", "Bearer ", "Basic ???", "nonsense"] {
            let refused = credentials(&metadata("authorization", header)).expect_err(header);
            assert_eq!(refused.code(), Code::Unauthenticated);
        }
        assert_eq!(credentials(&MetadataMap::new()).expect("none is fine"), Credentials::Nothing);
    }

    #[test]
    fn the_session_cookie_is_found_among_others() {
        let headers = metadata("cookie", "a=b; arrow_flight_session_id=42 ; c=d");
        assert_eq!(cookie(&headers), Some("42"));
        assert_eq!(cookie(&metadata("cookie", "a=b")), None);
    }
}
