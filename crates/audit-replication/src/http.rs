//! HTTP with limits: on time, on the size of answers, on redirects.

use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Method, Url};

use crate::tls;

/// No answer that we ask for is larger: sixteen kilobytes hold a hundred cosignatures.
const LARGEST_ANSWER: usize = 16 << 10;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A status and what came with it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) body: Vec<u8>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    #[error("{}", chain(.0))]
    Failed(#[from] reqwest::Error),
    #[error("the answer has more than {0} bytes")]
    TooLarge(usize),
}

/// The client's own words leave out the cause, which is what one wants to read.
fn chain(error: &reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    text
}

/// A client that keeps connections, follows no redirect and waits no longer than this for a whole answer.
pub(crate) fn client(timeout: Duration) -> Result<Client, HttpError> {
    tls::ready();
    let client = Client::builder()
        .timeout(timeout)
        .connect_timeout(CONNECT_TIMEOUT.min(timeout))
        .redirect(Policy::none())
        .user_agent(concat!("vram-audit/", env!("CARGO_PKG_VERSION")));
    Ok(client.build()?)
}

/// One request and its whole answer.
pub(crate) async fn send(client: &Client, method: Method, url: Url, body: Vec<u8>) -> Result<Answer, HttpError> {
    let (status, body) = send_up_to(client, method, url, body, LARGEST_ANSWER).await?;
    Ok(Answer { status, body })
}

/// As [`send`], for larger answers.
pub(crate) async fn send_up_to(
    client: &Client,
    method: Method,
    url: Url,
    body: Vec<u8>,
    limit: usize,
) -> Result<(u16, Vec<u8>), HttpError> {
    let mut answer = client.request(method, url).body(body).send().await?;
    let status = answer.status().as_u16();
    let mut whole = Vec::new();
    while let Some(part) = answer.chunk().await? {
        if whole.len().saturating_add(part.len()) > limit {
            return Err(HttpError::TooLarge(limit));
        }
        whole.extend_from_slice(&part);
    }
    Ok((status, whole))
}
