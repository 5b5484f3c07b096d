//! The page itself: three static files, in the binary.

use axum::http::{HeaderName, header};
use axum::response::IntoResponse;

type File = ([(HeaderName, &'static str); 1], &'static str);

fn file(content_type: &'static str, text: &'static str) -> File {
    ([(header::CONTENT_TYPE, content_type)], text)
}

pub(super) async fn index() -> impl IntoResponse {
    file("text/html; charset=utf-8", include_str!("../../console/index.html"))
}

pub(super) async fn style() -> impl IntoResponse {
    file("text/css; charset=utf-8", include_str!("../../console/console.css"))
}

pub(super) async fn script() -> impl IntoResponse {
    file("text/javascript; charset=utf-8", include_str!("../../console/console.js"))
}
