//! What stands before every answer: only names of this machine, nothing that changes anything on behalf of another page, and
//! headers that keep other pages out.

use axum::extract::{Request, State as Extract};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::Response;

use super::{State, failure, runs};

/// Whether the `Host` header must name this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostCheck {
    /// It must. A page of another site can make its own name point at 127.0.0.1 (DNS rebinding) and read what is
    /// served there; its requests still carry its name.
    LoopbackNames,
    /// It need not: the console listens on an address that has other names.
    AnyName,
}

/// The page needs nothing from elsewhere, and nobody may frame it.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HEADERS: [(header::HeaderName, &str); 6] = [
    (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Lets a request through, or answers in its place.
pub(super) async fn check(Extract(state): Extract<State>, request: Request, next: Next) -> Response {
    let mut response = match refuse(state.shared.host_check, &request) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    };
    for (name, value) in HEADERS {
        response.headers_mut().entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

fn refuse(host_check: HostCheck, request: &Request) -> Option<Response> {
    if host_check == HostCheck::LoopbackNames && !names_this_machine(request.headers()) {
        let message = "the Host header does not name this machine: open the console as http://localhost, or let it listen \
                       on another address";
        return Some(failure(StatusCode::FORBIDDEN, message));
    }
    if request.method() == Method::GET || request.method() == Method::HEAD {
        return None;
    }
    let path = request.uri().path();
    if request.method() != Method::POST || path != runs::PATH {
        let message = format!("{path} only reads: use GET");
        let mut refusal = failure(StatusCode::METHOD_NOT_ALLOWED, &message);
        refusal.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return Some(refusal);
    }
    if !is_of_this_page(request.headers()) {
        let message = "the Origin header names another page: this is only for the console's own page, and for programs, which \
                       send none";
        return Some(failure(StatusCode::FORBIDDEN, message));
    }
    None
}

/// Whether a request comes of the console's own page, or of no page at all. A browser tells with every request that changes
/// something which page it is of; there is no login here that another page's request would lack.
fn is_of_this_page(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else { return true };
    let own = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://"));
    origin.is_some_and(|(_, from)| own.is_some_and(|own| from.eq_ignore_ascii_case(own)))
}

fn names_this_machine(headers: &HeaderMap) -> bool {
    let mut hosts = headers.get_all(header::HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
    host.to_str().is_ok_and(is_loopback_name)
}

fn is_loopback_name(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        // A colon inside brackets is part of an IPv6 address and begins no port.
        Some((name, port)) if !port.ends_with(']') => {
            if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
                return false;
            }
            name
        }
        _ => host,
    };
    ["localhost", "127.0.0.1", "[::1]"].iter().any(|known| name.eq_ignore_ascii_case(known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_this_machine_pass() {
        for host in ["localhost", "localhost:8080", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:8080", "[::1]", "[::1]:8080"]
        {
            assert!(is_loopback_name(host), "{host}");
        }
        for host in [
            "evil.example",
            "evil.example:8080",
            "localhost.evil.example",
            "127.0.0.1.nip.io",
            "10.0.0.1",
            "::1",
            "localhost:",
            "localhost:80x",
            "",
        ] {
            assert!(!is_loopback_name(host), "{host}");
        }
    }
}
