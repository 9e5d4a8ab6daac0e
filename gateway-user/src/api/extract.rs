//! Bodies and queries, with errors that name the field.

use axum::{
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Request},
    http::{StatusCode, request::Parts},
    response::{IntoResponse, Response},
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::error::Category;

use super::{ApiError, ErrorKind};
use crate::model::error::unknown_field;

/// A JSON body. An empty one is `{}`. The content type does not matter: `curl -d` sends a wrong one.
pub(super) struct Body<T>(pub(super) T);

/// A query.
pub(super) struct Query<T>(pub(super) T);

/// A JSON answer.
pub(super) struct Answer<T>(pub(super) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|rejection| {
            let kind = match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => ErrorKind::TooLarge,
                _ => ErrorKind::Invalid,
            };
            ApiError::new("request", kind, format!("the body cannot be read: {}", rejection.body_text()))
        })?;
        let bytes = if bytes.is_empty() { Bytes::from_static(b"{}") } else { bytes };
        let mut json = serde_json::Deserializer::from_slice(&bytes);
        let value =
            serde_path_to_error::deserialize(&mut json).map_err(|error| match error.inner().classify() {
                Category::Data => refuse(&error.path().to_string(), &error.inner().to_string()),
                Category::Io | Category::Syntax | Category::Eof => not_json(error.inner()),
            })?;
        json.end().map_err(|error| not_json(&error))?;
        Ok(Self(value))
    }
}

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        let query = parts.uri.query().unwrap_or_default();
        serde_urlencoded::from_str(query).map(Self).map_err(|error| refuse(".", &error.to_string()))
    }
}

impl<T: Serialize> IntoResponse for Answer<T> {
    fn into_response(self) -> Response {
        axum::Json(self.0).into_response()
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind().status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (status, axum::Json(self)).into_response()
    }
}

fn not_json(error: &serde_json::Error) -> ApiError {
    refuse(".", &format!("the body is not JSON: {error}"))
}

/// What serde says about a request, as an error.
fn refuse(path: &str, message: &str) -> ApiError {
    let error = |message: String| {
        ApiError::new("request", ErrorKind::Invalid, message)
            .hint("docs/reference/api.md describes every request")
    };
    if let Some((field, hint)) = unknown_field(message) {
        return error(format!("`{field}` is not a field of this request")).hint(hint).field(field);
    }
    let missing = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next());
    if let Some(field) = missing {
        return error(format!("`{field}` is missing")).hint(format!("give `{field}`")).field(field);
    }
    if path == "." { error(message.to_owned()) } else { error(format!("{path}: {message}")).field(path) }
}
