//! Connections: how many, how long, how large. What they ask is answered in [`super::routes`].

use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio_io_timeout::TimeoutStream;

use super::lock::lock;
use super::standing::{Open, Standing};

/// How long a client may take for the head of a request.
const HEAD_TIME: Duration = Duration::from_secs(5);
/// How large that may be.
const HEAD_BYTES: usize = 16 << 10;
/// How long a client may leave an answer unread.
const READ_TIME: Duration = Duration::from_secs(10);
/// How long a connection may last, streams of events included: clients connect again.
const LIFE: Duration = Duration::from_secs(3600);
/// How long to wait after an accept that failed, for instance because descriptors ran out.
const BREATHER: Duration = Duration::from_millis(100);

/// The user at the other end of a control socket, as the kernel says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer(pub(super) u32);

#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) connections: usize,
}

/// Answers on a TCP port until the end is wanted and every request in progress is answered.
pub(super) async fn serve_tcp(listener: TcpListener, router: Router, limits: Limits, ended: watch::Receiver<bool>) {
    let accept = || async { listener.accept().await.map(|(stream, _)| Some((stream, None))) };
    serve(accept, router, limits, ended).await;
}

/// The same on the control socket, for this user and root.
pub(super) async fn serve_unix(listener: UnixListener, router: Router, limits: Limits, ended: watch::Receiver<bool>) {
    let own = rustix::process::geteuid().as_raw();
    let accept = || async {
        let (stream, _) = listener.accept().await?;
        let peer = stream.peer_cred()?.uid();
        // The file's mode keeps others out; this does where somebody changed that.
        Ok(Some((stream, Some(Peer(peer)))).filter(|_| peer == own || peer == 0))
    };
    serve(accept, router, limits, ended).await;
}

async fn serve<S, F>(accept: impl Fn() -> F, router: Router, limits: Limits, mut ended: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    F: Future<Output = std::io::Result<Option<(S, Option<Peer>)>>>,
{
    let mut talks = JoinSet::new();
    let open: Arc<Mutex<Open>> = Arc::default();
    for number in 0.. {
        let accepted = tokio::select! {
            accepted = accept() => accepted,
            Some(_) = talks.join_next() => continue,
            _ = ended.changed() => break,
        };
        let (stream, peer) = match accepted {
            Ok(Some(accepted)) => accepted,
            Ok(None) => continue,
            Err(_) => {
                tokio::time::sleep(BREATHER).await;
                continue;
            }
        };
        let (alive, evicted) = oneshot::channel();
        let standing = Standing::default();
        if !lock(&open).admit(number, standing.clone(), alive, limits.connections) {
            continue;
        }
        let (router, ended, open) = (router.clone(), ended.clone(), Arc::clone(&open));
        talks.spawn(async move {
            tokio::select! {
                () = converse(stream, router, peer, standing, ended) => {}
                _ = evicted => {}
            }
            lock(&open).leave(number);
        });
    }
    while talks.join_next().await.is_some() {}
}

async fn converse<S>(
    stream: S,
    router: Router,
    peer: Option<Peer>,
    standing: Standing,
    mut ended: watch::Receiver<bool>,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    // A client that does not read what it asked for is not waited for.
    let mut stream = TimeoutStream::new(stream);
    stream.set_write_timeout(Some(READ_TIME));
    let stream = TokioIo::new(Box::pin(stream));
    let router = TowerToHyperService::new(router);
    let answer = service_fn(|mut request: Request<Incoming>| {
        let answering = standing.answer();
        request.extensions_mut().insert(standing.clone());
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        let answer = router.call(request);
        async move { Ok::<_, Infallible>(answer.await?.map(|body| Body::new(answering.until_sent(body)))) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(stream, answer);
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        // What a client does wrong is its own affair.
        _ = connection.as_mut() => return,
        () = tokio::time::sleep(LIFE) => return,
        _ = ended.changed() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = tokio::time::timeout(super::DRAIN, connection).await;
}
