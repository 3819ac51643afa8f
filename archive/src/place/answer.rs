//! What a store's error means: in words, whether it may pass, whether only the answer was lost.
//!
//! `object_store` keeps its request error private, so a status is known from its text alone.

use std::error::Error as StdError;

use object_store::Error as StoreError;
use object_store::client::{HttpError, HttpErrorKind};

use super::connect::RETRIES_MAX;
use crate::error::{Error, Passing, Problem, ProblemKind};
use crate::location::Location;

/// Characters of a store's own message.
const MESSAGE_MAX: usize = 300;

/// The error of a store.
pub(super) fn error(
    place: &Location,
    doing: &'static str,
    file: String,
    source: &StoreError,
) -> Error {
    if matches!(source, StoreError::NotFound { .. }) && !file.is_empty() && doing == "read" {
        return Problem::new(file, ProblemKind::Missing).at(place);
    }
    Error::Store {
        doing,
        file,
        place: place.clone(),
        passing: passing(source),
        why: said(source),
    }
}

/// Whether it may pass. The crate's own retries have been used up by then.
pub(super) fn passing(error: &StoreError) -> Passing {
    let StoreError::Generic { source, .. } = error else {
        return Passing::Stays;
    };
    if let Some(http) = http(error) {
        return match http.kind() {
            HttpErrorKind::Unknown => Passing::Stays,
            _ => Passing::MayPass,
        };
    }
    if causes(&**source).any(<dyn StdError>::is::<std::io::Error>) {
        return Passing::MayPass;
    }
    let text = error.to_string();
    match status(&text) {
        Some(408 | 429 | 500 | 502..=599) => Passing::MayPass,
        Some(_) => Passing::Stays,
        None if text.contains("SlowDown") || text.contains("InternalError") => Passing::MayPass,
        None => Passing::Stays,
    }
}

/// Whether the answer ended before its end or did not come, so that the store may or may not have done what
/// it was asked for.
pub(super) fn is_lost(error: &StoreError) -> bool {
    http(error).is_some_and(|http| {
        matches!(
            http.kind(),
            HttpErrorKind::Interrupted | HttpErrorKind::Decode | HttpErrorKind::Timeout
        )
    })
}

/// Whether an answer was lost and the crate has not asked again as often as it may: it never does where an
/// answer breaks off, and after a time-out only where the request changes nothing.
pub(super) fn is_lost_at_once(error: &StoreError) -> bool {
    let is_timeout = http(error).is_some_and(|http| http.kind() == HttpErrorKind::Timeout);
    let often = if is_timeout { 1 } else { RETRIES_MAX };
    is_lost(error) && retries(&error.to_string()).is_none_or(|retries| retries < often)
}

/// Whether the store does not know that kind of request.
pub(super) fn is_unsupported(error: &StoreError) -> bool {
    match error {
        StoreError::NotImplemented { .. } | StoreError::NotSupported { .. } => true,
        error => status(&error.to_string()) == Some(501),
    }
}

/// What went wrong, in a line. A store's answer to a wrong signature quotes the whole request with its session
/// token, so of an answer only status, code and message are repeated.
fn said(error: &StoreError) -> String {
    let text = error.to_string();
    let mut said = match (after_status(&text), http(error)) {
        (Some(answer), _) => {
            let status = answer.split(':').next().unwrap_or_default().trim();
            match (tagged(answer, "Code"), tagged(answer, "Message")) {
                (Some(code), Some(message)) => format!("{status} ({code}: {message})"),
                (Some(only), None) | (None, Some(only)) => format!("{status} ({only})"),
                (None, None) => status.to_owned(),
            }
        }
        (None, Some(http)) => {
            let what = match http.kind() {
                HttpErrorKind::Connect => "no connection",
                HttpErrorKind::Timeout => "no answer in time",
                HttpErrorKind::Request | HttpErrorKind::Interrupted | HttpErrorKind::Decode => {
                    "the connection broke"
                }
                _ => "the request failed",
            };
            match causes(http).last() {
                Some(cause) => format!("{what} ({})", cut(&cause.to_string())),
                None => what.to_owned(),
            }
        }
        (None, None) => {
            let plain = text.strip_prefix("Generic S3 error: ").unwrap_or(&text);
            cut(plain)
        }
    };
    if let Some(retries) = retries(&text) {
        said.push_str(&format!(", after {retries} retries"));
    }
    let is_refused = matches!(
        error,
        StoreError::PermissionDenied { .. } | StoreError::Unauthenticated { .. }
    );
    // Of several objects to be deleted, one may be refused.
    if is_refused || text.contains("AccessDenied") {
        said.push_str(
            ": the credentials are wrong or lack a permission; docs/snapshots.md lists those that are needed",
        );
    }
    said
}

/// The HTTP error among the causes.
fn http(error: &StoreError) -> Option<&HttpError> {
    causes(error).find_map(|cause| cause.downcast_ref::<HttpError>())
}

/// The error and its causes.
fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    })
}

/// The status that an error's text names.
fn status(text: &str) -> Option<u16> {
    after_status(text)?.get(..3)?.parse().ok()
}

fn after_status(text: &str) -> Option<&str> {
    text.split_once("status code: ").map(|(_, rest)| rest)
}

/// How often the crate has repeated the request.
fn retries(text: &str) -> Option<usize> {
    let (before, _) = text.split_once(" retries, max_retries")?;
    before.rsplit(' ').next()?.parse().ok()
}

/// The content of an element of an answer in XML.
fn tagged(answer: &str, element: &str) -> Option<String> {
    let (_, rest) = answer.split_once(&format!("<{element}>"))?;
    let (content, _) = rest.split_once(&format!("</{element}>"))?;
    Some(cut(content))
}

fn cut(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(MESSAGE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generic(source: impl Into<Box<dyn StdError + Send + Sync>>) -> StoreError {
        StoreError::Generic {
            store: "S3",
            source: source.into(),
        }
    }

    fn http(kind: HttpErrorKind) -> StoreError {
        generic(HttpError::new(kind, std::io::Error::other("slow")))
    }

    #[test]
    fn throttling_timeouts_and_broken_connections_may_pass() {
        for (error, expected) in [
            (http(HttpErrorKind::Timeout), Passing::MayPass),
            (http(HttpErrorKind::Decode), Passing::MayPass),
            (http(HttpErrorKind::Unknown), Passing::Stays),
            (
                generic("Server returned non-2xx status code: 503 Service Unavailable: "),
                Passing::MayPass,
            ),
            (
                generic("Server returned non-2xx status code: 429 Too Many Requests: "),
                Passing::MayPass,
            ),
            (
                generic("Server returned non-2xx status code: 400 Bad Request: "),
                Passing::Stays,
            ),
            (
                generic("Server returned error response: <Code>SlowDown</Code>"),
                Passing::MayPass,
            ),
            (generic("no region"), Passing::Stays),
            (
                StoreError::PermissionDenied {
                    path: "a".to_owned(),
                    source: "status code: 503".into(),
                },
                Passing::Stays,
            ),
        ] {
            assert_eq!(passing(&error), expected, "{error}");
        }
    }

    #[derive(Debug, thiserror::Error)]
    #[error("Error, after {retries} retries, max_retries: 8 - {source}")]
    struct Retried {
        retries: usize,
        source: HttpError,
    }

    #[test]
    fn an_answer_that_was_cut_is_asked_for_again_and_one_that_the_crate_gave_up_is_not() {
        use HttpErrorKind::{Connect, Interrupted, Timeout};
        for (kind, tried, lost, at_once) in [
            (Interrupted, 0, true, true),
            (Interrupted, 1, true, true),
            (Interrupted, RETRIES_MAX, true, false),
            (Timeout, 0, true, true),
            (Timeout, 2, true, false),
            (Connect, 0, false, false),
        ] {
            let source = HttpError::new(kind, std::io::Error::other("cut"));
            let error = match tried {
                0 => generic(source),
                retries => generic(Retried { retries, source }),
            };
            assert_eq!(is_lost(&error), lost, "{error}");
            assert_eq!(is_lost_at_once(&error), at_once, "{error}");
        }
        assert!(!is_lost(&generic("status code: 500")));
    }

    #[test]
    fn what_a_store_quotes_of_the_request_is_not_repeated() {
        let answer = "Error performing PUT http://s3/b/a in 2ms, after 3 retries, max_retries: 8, \
            retry_timeout: 90s  - Server returned non-2xx status code: 403 Forbidden: <?xml?>\n\
            <Error><Code>SignatureDoesNotMatch</Code><Message>The request\nsignature differs.</Message>\
            <CanonicalRequest>x-amz-security-token:hunter2</CanonicalRequest></Error>";
        let error = StoreError::PermissionDenied {
            path: "a".to_owned(),
            source: answer.into(),
        };
        let said = said(&error);
        assert!(
            said.starts_with(
                "403 Forbidden (SignatureDoesNotMatch: The request signature differs.), after 3 retries: "
            ),
            "{said}"
        );
        assert!(!said.contains("hunter2"));
        assert!(said.contains("docs/snapshots.md"));
    }

    #[test]
    fn the_last_cause_of_a_broken_connection_is_named() {
        let error = http(HttpErrorKind::Connect);
        assert_eq!(said(&error), "no connection (slow)");
    }
}
