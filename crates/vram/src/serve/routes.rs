//! Which request is answered by what.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, FromRequestParts, Path, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http_body_util::LengthLimitError;
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use serde::de::DeserializeOwned;
use vram_residency::ShardId;
use vram_residency::approval::Algorithm;
use vram_residency::model::Format;

use super::attest::{AttestBody, KeyFile};
use super::auth::Token;
use super::config;
use super::events::Events;
use super::host::{for_this_machine, named_once};
use super::http::Peer;
use super::registry::Registry;
use super::report::{DrillRequest, Health, LoadRequest, ReleaseRequest, ResealRequest, UnsealRequest};
use super::standing::Standing;
use super::{openapi, page, published, telemetry};
use crate::approve::Source;
use crate::exit::{Exit, Failure};

/// Largest body that is read.
const BODY_BYTES: usize = 64 << 10;
/// How long a client may take for that.
const BODY_TIME: Duration = Duration::from_secs(10);

/// What every answer is made from.
#[derive(Clone)]
pub(super) struct Shared {
    pub(super) registry: Arc<Registry>,
    pub(super) events: Events,
    pub(super) exporter: PrometheusHandle,
    pub(super) token: Option<Arc<Token>>,
    pub(super) attest_key: KeyFile,
    /// Whether the port can only be reached from this machine.
    pub(super) local: bool,
}

type Answer<T> = Result<Json<T>, Refusal>;

/// For anybody who can reach the port: to look. What costs work needs the token.
pub(super) fn public(shared: Shared) -> Router {
    let guarded = Router::new()
        .route("/v1/verify", post(verify_all))
        .route("/v1/shards/{id}/verify", post(verify))
        .route("/v1/attest", post(attest))
        .route_layer(middleware::from_fn(complete))
        .route_layer(middleware::from_fn_with_state(shared.clone(), needs_token));
    let show = page::routes().route("/audit/{*file}", get(published_file));
    let local = middleware::from_fn_with_state(shared.clone(), for_this_machine);
    finish(answered(look().merge(guarded).merge(show)).layer(local), shared)
}

/// For who may open the control socket: everything.
pub(super) fn control(shared: Shared) -> Router {
    let act = Router::new()
        .route("/v1/attest", post(attest))
        .route("/v1/shards", post(load))
        .route("/v1/shards/{id}", axum::routing::delete(release))
        .route("/v1/verify", post(verify_all))
        .route("/v1/shards/{id}/verify", post(verify))
        .route("/v1/shards/{id}/repair", post(repair))
        .route("/v1/shards/{id}/unseal", post(unseal))
        .route("/v1/shards/{id}/reseal", post(reseal))
        .route("/v1/shards/{id}/drill", post(drill))
        .route_layer(middleware::from_fn(complete));
    finish(answered(look().merge(act)), shared)
}

fn look() -> Router<Shared> {
    Router::new()
        .route("/healthz", get(|State(shared): State<Shared>| async move { health(shared.registry.liveness()) }))
        .route("/readyz", get(|State(shared): State<Shared>| async move { health(shared.registry.readiness()) }))
        .route("/metrics", get(metrics))
        .route("/v1/status", get(status))
        .route("/v1/shards", get(|State(shared): State<Shared>| async move { Json(shared.registry.status().shards) }))
        .route("/v1/shards/{id}", get(shard))
        .route("/v1/shards/{id}/blocks", get(blocks))
        .route("/v1/shards/{id}/blocks/{block}", get(block))
        .route("/v1/events", get(events))
        .route("/v1/records", get(|State(shared): State<Shared>| async move { Json(shared.events.recent().records()) }))
        .route("/v1/openapi.json", get(|| async { ([(header::CONTENT_TYPE, "application/json")], openapi::DOCUMENT) }))
}

/// With an answer to whatever else is asked.
fn answered(router: Router<Shared>) -> Router<Shared> {
    router
        .fallback(|| async {
            Refusal(StatusCode::NOT_FOUND, Failure::new("not-found", "there is nothing at this path"))
        })
        .method_not_allowed_fallback(|method: Method| async move {
            let message = format!("{method} is not answered at this path; /v1/openapi.json says what is");
            Refusal(StatusCode::METHOD_NOT_ALLOWED, Failure::new("method", message))
        })
}

fn finish(router: Router<Shared>, shared: Shared) -> Router {
    router
        .layer(DefaultBodyLimit::max(BODY_BYTES))
        .layer(middleware::from_fn(named_once))
        .layer(middleware::map_response(plain))
        .with_state(shared)
}

/// Waits for the whole body of a request, for a while; from then on there is work under way.
async fn complete(Extension(standing): Extension<Standing>, request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let (status, kind, message) = match tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, BODY_BYTES)).await {
        Ok(Ok(body)) => {
            let _working = standing.work();
            return next.run(Request::from_parts(parts, body.into())).await;
        }
        Ok(Err(error)) if error.source().is_some_and(|error| error.is::<LengthLimitError>()) => {
            let message =
                format!("the body is larger than {BODY_BYTES} bytes; nothing that is asked for here needs more");
            (StatusCode::PAYLOAD_TOO_LARGE, "usage", message)
        }
        Ok(Err(error)) => (StatusCode::BAD_REQUEST, "usage", format!("the body could not be read: {error}")),
        Err(_) => {
            let message = format!("the body was not complete within {BODY_TIME:?}; send all of it at once");
            (StatusCode::REQUEST_TIMEOUT, "timeout", message)
        }
    };
    Refusal(status, Failure::new(kind, message)).into_response()
}

/// Nobody's browser should guess what this is, or keep it, or show it inside something else, unless the answer itself says
/// more.
async fn plain(mut response: Response) -> Response {
    let headers = response.headers_mut();
    for (name, value) in [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    ] {
        headers.entry(name).or_insert(header::HeaderValue::from_static(value));
    }
    response
}

async fn needs_token(State(shared): State<Shared>, request: Request, next: Next) -> Response {
    let (status, message) = match &shared.token {
        Some(token) if token.is_shown(request.headers()) => return next.run(request).await,
        Some(_) => (StatusCode::UNAUTHORIZED, "this needs one header Authorization: Bearer TOKEN"),
        None => (
            StatusCode::FORBIDDEN,
            "this costs work and the daemon has no token; start it with --token-file, or use the control socket",
        ),
    };
    let mut response = Refusal(status, Failure::new("token", message)).into_response();
    if status == StatusCode::UNAUTHORIZED {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, header::HeaderValue::from_static("Bearer"));
    }
    response
}

fn health(health: Health) -> Response {
    let status = if health.ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(health)).into_response()
}

async fn status(State(shared): State<Shared>, peer: Option<Extension<Peer>>) -> impl IntoResponse {
    let status = shared.registry.status();
    // Whose the clients are is told to who may command the daemon.
    Json(if peer.is_some() { status } else { status.for_everybody() })
}

async fn events(State(shared): State<Shared>) -> Result<impl IntoResponse, Refusal> {
    shared.events.stream().ok_or_else(|| {
        let message = "too many streams of events are open; close one, or raise --max-connections";
        Refusal(StatusCode::SERVICE_UNAVAILABLE, Failure::new("busy", message))
    })
}

async fn metrics(State(shared): State<Shared>) -> Response {
    let text = telemetry::render(&shared.exporter);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn shard(State(shared): State<Shared>, Id(id): Id) -> Answer<impl Serialize> {
    Ok(Json(shared.registry.shard(&id)?))
}

async fn blocks(
    State(shared): State<Shared>,
    Id(id): Id,
) -> Result<([(header::HeaderName, &'static str); 1], Bytes), Refusal> {
    Ok(([(header::CONTENT_TYPE, "application/json")], shared.registry.blocks(&id)?))
}

async fn block(State(shared): State<Shared>, Named((id, block)): Named<(String, String)>) -> Answer<impl Serialize> {
    let id = ShardId::new(&id).map_err(|error| Failure::usage(error.to_string()))?;
    let block = number(&block).ok_or_else(|| {
        Failure::usage("a block is named by its number, counted from 0 and written without signs or leading zeros")
    })?;
    Ok(Json(shared.registry.block(&id, block)?))
}

async fn published_file(State(shared): State<Shared>, Named(name): Named<String>) -> Result<Response, Refusal> {
    match published::file(shared.registry.published(), &name).await {
        Ok(Some(file)) => Ok(file),
        Ok(None) => {
            let message =
                "the published log has no such file; it begins with /audit/checkpoint, where the log has a key";
            Err(Refusal(StatusCode::NOT_FOUND, Failure::new("not-found", message)))
        }
        Err(error) => {
            let message = format!("the published log cannot be read: {error}; check the disk");
            Err(Refusal(StatusCode::INTERNAL_SERVER_ERROR, Failure::new("system", message)))
        }
    }
}

async fn verify(State(shared): State<Shared>, Id(id): Id) -> Answer<impl Serialize> {
    work(move || shared.registry.verify(&id)).await
}

async fn verify_all(State(shared): State<Shared>) -> Answer<impl Serialize> {
    work(move || shared.registry.verify_all()).await
}

/// Every byte of the answer is signed for, or part of what is checked: it is sent as it was made.
async fn attest(
    State(shared): State<Shared>,
    peer: Option<Extension<Peer>>,
    body: Result<Json<AttestBody>, JsonRejection>,
) -> Result<Response, Refusal> {
    let body = body?.0;
    let made = work(move || {
        let _acting = peer.map(|Extension(peer)| shared.registry.acting_for(peer.0));
        Ok(shared.registry.attest(&shared.attest_key, &body)?.envelope)
    });
    let Json(envelope) = made.await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], envelope).into_response())
}

async fn repair(State(shared): State<Shared>, Extension(peer): Extension<Peer>, Id(id): Id) -> Answer<impl Serialize> {
    order(shared, peer, "repair", Some(id), move |registry| registry.repair(&id)).await
}

async fn release(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Id(id): Id,
    headers: HeaderMap,
    body: Result<Json<ReleaseRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let force = optional(&headers, body)?.force;
    order(shared, peer, "release", Some(id), move |registry| registry.release(&id, force)).await
}

async fn load(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    body: Result<Json<LoadRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let LoadRequest { files, format, manifest, manifest_key, manifest_hash } = body?.0;
    let manifest_hash = manifest_hash.map(|hash| hash.parse::<Algorithm>()).transpose();
    let manifest_hash = manifest_hash.map_err(|error| Failure::usage(error.to_string()))?;
    let source = Source { manifest, manifest_key, manifest_hash };
    config::check_source(&source)?;
    let format = format.map(|format| format.parse::<Format>()).transpose();
    let format = format.map_err(|error| Failure::usage(error.to_string()))?;
    order(shared, peer, "load", None, move |registry| registry.load_files(&files, format, &source)).await
}

async fn unseal(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Id(id): Id,
    body: Result<Json<UnsealRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let UnsealRequest { reason, force } = body?.0;
    order(shared, peer, "unseal", Some(id), move |registry| registry.unseal(&id, &reason, force)).await
}

async fn reseal(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Id(id): Id,
    headers: HeaderMap,
    body: Result<Json<ResealRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let body = optional(&headers, body)?;
    order(shared, peer, "reseal", Some(id), move |registry| registry.reseal(&id, body.file.as_deref())).await
}

async fn drill(
    State(shared): State<Shared>,
    Extension(peer): Extension<Peer>,
    Id(id): Id,
    headers: HeaderMap,
    body: Result<Json<DrillRequest>, JsonRejection>,
) -> Answer<impl Serialize> {
    let body = optional(&headers, body)?;
    order(shared, peer, "drill", Some(id), move |registry| registry.drill(&id, body.byte, body.bit)).await
}

/// A body that may be missing.
fn optional<T: Default + DeserializeOwned>(
    headers: &HeaderMap,
    body: Result<Json<T>, JsonRejection>,
) -> Result<T, Refusal> {
    match body {
        Err(_) if !headers.contains_key(header::CONTENT_TYPE) => Ok(T::default()),
        body => Ok(body?.0),
    }
}

/// The shard that a path names.
struct Id(ShardId);

impl<S: Send + Sync> FromRequestParts<S> for Id {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Named(text) = Named::<String>::from_request_parts(parts, state).await?;
        Ok(Self(ShardId::new(&text).map_err(|error| Failure::usage(error.to_string()))?))
    }
}

/// What a path names.
struct Named<T>(T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Named<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let Path(named) = Path::from_request_parts(parts, state).await.map_err(|error| {
            let message = format!("the path is not understood: {}; write it as UTF-8", error.body_text());
            Refusal(StatusCode::BAD_REQUEST, Failure::usage(message))
        })?;
        Ok(Self(named))
    }
}

/// A number in the one way in which it is written.
fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|number: &u64| number.to_string() == text)
}

/// Carries out an order of the control socket's peer, recorded first.
async fn order<T: Send + 'static>(
    shared: Shared,
    peer: Peer,
    command: &'static str,
    shard_id: Option<ShardId>,
    carry_out: impl FnOnce(&Registry) -> Result<T, Failure> + Send + 'static,
) -> Answer<T> {
    work(move || {
        let _acting = shared.registry.acting_for(peer.0);
        shared.registry.record_command(command, shard_id.as_ref())?;
        carry_out(&shared.registry)
    })
    .await
}

/// Does what may take long where nobody else waits for it.
async fn work<T: Send + 'static>(work: impl FnOnce() -> Result<T, Failure> + Send + 'static) -> Answer<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(Json(done?)),
        Err(_) => Err(Failure::new("defect", "the request failed inside the daemon; report this defect").into()),
    }
}

/// An answer that says why not.
pub(super) struct Refusal(pub(super) StatusCode, pub(super) Failure);

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Self {
        let status = match (failure.kind, failure.exit) {
            ("unknown-shard", _) => StatusCode::NOT_FOUND,
            ("no-key", _) => StatusCode::SERVICE_UNAVAILABLE,
            ("busy", _) => StatusCode::TOO_MANY_REQUESTS,
            ("stopped", _) => StatusCode::SERVICE_UNAVAILABLE,
            ("forbidden", _) => StatusCode::FORBIDDEN,
            ("defect", _) => StatusCode::INTERNAL_SERVER_ERROR,
            ("memory", _) => StatusCode::INSUFFICIENT_STORAGE,
            (_, Exit::Usage) => StatusCode::BAD_REQUEST,
            // The shard is not what was sealed: that is what the answer is about, and not a fault of the request.
            _ => StatusCode::CONFLICT,
        };
        Self(status, failure)
    }
}

impl From<JsonRejection> for Refusal {
    fn from(rejection: JsonRejection) -> Self {
        Self(rejection.status(), Failure::usage(rejection.body_text()))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Body {
            error: Failure,
            integrity: bool,
        }
        let integrity = self.1.exit == Exit::Integrity;
        (self.0, Json(Body { error: self.1, integrity })).into_response()
    }
}
