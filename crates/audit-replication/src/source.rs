//! A published log that lies elsewhere, read as if it lay here: for an auditor's offline verification.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::time::Duration;

use audit_logging::tlog::source::{MAX_FILE, Source, SourceError};
use bytes::Bytes;
use object_store::path::Path;
use reqwest::{Client, Method, Url};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use crate::backoff::Backoff;
use crate::http::{HttpError, client, send_up_to};
use crate::put::read;
use crate::store::{Location, Store, StoreError, StoreOptions, redacted};

/// How often a file is asked for before its absence from the network becomes an error.
const ATTEMPTS: u32 = 4;
const TIMEOUT: Duration = Duration::from_secs(30);

/// A published log at a URL: `https://…` or `http://…` (the directory's prefix, as any web server serves it),
/// `s3://bucket/prefix`, `file:///directory`.
///
/// It reads on a thread of its own and may be asked from any number of threads, also from within an async runtime. What
/// comes from there is not trusted by anybody: verification is what follows. An object that an S3 store merely hides
/// behind a delete marker reads as missing.
#[derive(Clone)]
pub struct RemoteSource {
    shown: String,
    questions: UnboundedSender<Question>,
}

impl fmt::Debug for RemoteSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("RemoteSource").field(&self.shown).finish()
    }
}

struct Question {
    path: String,
    answer: SyncSender<Result<Option<Bytes>, FetchError>>,
}

/// Why a published log cannot be read from a URL.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum RemoteError {
    /// The URL, the directory or the store's options.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No client could be made.
    #[error("{url} cannot be read: {why}")]
    Client {
        /// What was given.
        url: String,
        /// What is wrong.
        why: String,
    },
}

impl RemoteSource {
    /// The log published at this URL. Nothing is asked of it yet.
    ///
    /// # Errors
    /// [`RemoteError`]: the URL is none that can be read, or the system has no thread for it.
    pub fn open(url: &str, options: &StoreOptions) -> Result<Self, RemoteError> {
        let fail = |why: String| RemoteError::Client { url: redacted(url), why };
        let place = match Url::parse(url) {
            Ok(parsed) if matches!(parsed.scheme(), "http" | "https") => {
                Place::Web(client(TIMEOUT).map_err(|error| fail(error.to_string()))?, parsed)
            }
            _ => Place::Store(Location::parse(url)?.open(options)?),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(4)
            .build()
            .map_err(|error| fail(error.to_string()))?;
        let (questions, asked) = unbounded_channel();
        std::thread::Builder::new()
            .name("audit-source".to_owned())
            .spawn(move || runtime.block_on(serve(Arc::new(place), asked)))
            .map_err(|error| fail(error.to_string()))?;
        Ok(Self { shown: redacted(url), questions })
    }
}

impl Source for RemoteSource {
    fn get(&self, path: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let gone = || SourceError::new(path, "the thread that reads it ended");
        let (answer, answered) = sync_channel(1);
        self.questions.send(Question { path: path.to_owned(), answer }).map_err(|_| gone())?;
        let answer = answered.recv().map_err(|_| gone())?;
        answer.map(|bytes| bytes.map(|bytes| bytes.to_vec())).map_err(|error| SourceError::new(path, error))
    }
}

/// Where the files are.
enum Place {
    Web(Client, Url),
    Store(Store),
}

#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("{0}")]
    Http(#[from] HttpError),
    #[error("the web server answered with HTTP {0}")]
    Status(u16),
    #[error("{0}")]
    Store(#[from] object_store::Error),
    #[error("no file of a published log has such a name")]
    Name,
}

impl FetchError {
    /// Whether another attempt may help.
    fn passes(&self) -> bool {
        match self {
            Self::Http(HttpError::Failed(_)) => true,
            Self::Status(status) => *status == 429 || *status >= 500,
            Self::Store(object_store::Error::Generic { .. }) => true,
            _ => false,
        }
    }
}

/// Answers until nobody can ask any more.
async fn serve(place: Arc<Place>, mut asked: UnboundedReceiver<Question>) {
    while let Some(Question { path, answer }) = asked.recv().await {
        let place = Arc::clone(&place);
        tokio::spawn(async move {
            // Whoever asked may have gone.
            let _ = answer.send(place.fetch(&path).await);
        });
    }
}

impl Place {
    async fn fetch(&self, path: &str) -> Result<Option<Bytes>, FetchError> {
        let mut backoff = Backoff::new();
        loop {
            match self.fetch_once(path).await {
                Err(error) if error.passes() && backoff.failures().saturating_add(1) < ATTEMPTS => {
                    tokio::time::sleep(backoff.failed()).await;
                }
                other => return other,
            }
        }
    }

    async fn fetch_once(&self, path: &str) -> Result<Option<Bytes>, FetchError> {
        if path.is_empty() || path.split('/').any(|part| part.is_empty() || part.starts_with('.')) {
            return Err(FetchError::Name);
        }
        match self {
            Self::Store(store) => Ok(read(&*store.inner, &Path::from(path)).await?),
            Self::Web(client, prefix) => {
                let mut url = prefix.clone();
                url.path_segments_mut().map_err(|()| FetchError::Name)?.pop_if_empty().extend(path.split('/'));
                let limit = usize::try_from(MAX_FILE).unwrap_or(usize::MAX);
                match send_up_to(client, Method::GET, url, Vec::new(), limit).await? {
                    (200, body) => Ok(Some(Bytes::from(body))),
                    (404 | 410, _) => Ok(None),
                    (status, _) => Err(FetchError::Status(status)),
                }
            }
        }
    }
}
