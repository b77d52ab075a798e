//! Where a replica lies: an S3-compatible store or a directory.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use object_store::aws::{AmazonS3, AmazonS3Builder, Checksum};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::signer::{HeaderMap, HeaderName, HeaderValue};
use object_store::{ClientOptions, ObjectStore, RetryConfig};
use url::Url;

use crate::tls;

/// How long one request may take, its answer included.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a connection may take to come about.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How a store is reached, where its URL does not say it. Credentials are not among this: they come from the usual
/// `AWS_*` variables of the environment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreOptions {
    /// The store's address, for one that is not Amazon's: `https://s3.example.com`. Default: `AWS_ENDPOINT_URL`.
    pub endpoint: Option<String>,
    /// The region. Default: `AWS_REGION`, then `us-east-1`.
    pub region: Option<String>,
    /// Whether the endpoint may be spoken to without TLS.
    pub allow_http: bool,
}

/// The URL of a store, understood but not opened: nothing is asked of the network or the disk.
#[derive(Debug, Clone)]
pub struct Location {
    shown: String,
    place: Place,
}

#[derive(Debug, Clone)]
enum Place {
    Directory(PathBuf),
    Bucket { name: String, prefix: Path },
    Made(Arc<dyn ObjectStore>),
}

impl Location {
    /// Understands `s3://bucket/prefix` and `file:///directory`.
    ///
    /// # Errors
    /// [`StoreError::Url`].
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let refuse = |why: &'static str| StoreError::Url { url: redacted(text), why };
        let url = Url::parse(text).map_err(|_| refuse("it is not a URL"))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse("credentials belong into the environment (AWS_ACCESS_KEY_ID and so on)"));
        }
        if url.query().is_some() || url.fragment().is_some() || url.port().is_some() {
            return Err(refuse("it has more than bucket and prefix; an address goes into the option `endpoint`"));
        }
        let host = url.host_str().unwrap_or_default();
        let place = match url.scheme() {
            "s3" if host.is_empty() => return Err(refuse("it names no bucket")),
            "s3" => Place::Bucket {
                name: host.to_owned(),
                prefix: Path::from_url_path(url.path())
                    .map_err(|_| refuse("its path is none that a store can have"))?,
            },
            "file" => Place::Directory(url.to_file_path().map_err(|()| refuse("it names no absolute directory"))?),
            _ => return Err(refuse("only s3://bucket/prefix and file:///directory are known")),
        };
        Ok(Self { shown: text.trim_end_matches('/').to_owned(), place })
    }

    /// A store that somebody else made, under a name for messages.
    #[must_use]
    pub fn of(name: &str, store: Arc<dyn ObjectStore>) -> Self {
        Self { shown: name.to_owned(), place: Place::Made(store) }
    }

    /// Whether it is a directory.
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.place, Place::Directory(_))
    }

    /// Makes the store's client. Of a directory it asks that it exists; a bucket is not spoken to yet.
    ///
    /// # Errors
    /// [`StoreError`]: the directory is not there, or an option or the environment is not understood.
    pub(crate) fn open(&self, options: &StoreOptions) -> Result<Store, StoreError> {
        let fail = |source| StoreError::Open { url: self.shown.clone(), source };
        match &self.place {
            Place::Made(store) => {
                Ok(Store { shown: self.shown.clone(), inner: Arc::clone(store), versions: None, home: None })
            }
            Place::Directory(dir) => {
                // It must be there: a directory made in place of a file system that is not mounted would be no replica.
                let store = LocalFileSystem::new_with_prefix(dir).map_err(fail)?.with_fsync(true);
                // Only what the probe made is ever deleted: its directories go with it.
                let store = store.with_automatic_cleanup(true);
                let identity = Identity::of(dir).ok_or_else(|| StoreError::Replaced { url: self.shown.clone() })?;
                let home = Some((dir.clone(), identity));
                Ok(Store { shown: self.shown.clone(), inner: Arc::new(store), versions: None, home })
            }
            Place::Bucket { name, prefix } => {
                if let Some(endpoint) = options.endpoint.as_ref().filter(|endpoint| endpoint.starts_with("http://"))
                    && !options.allow_http
                {
                    return Err(StoreError::Plain { endpoint: redacted(endpoint) });
                }
                let s3 = bucket(name, options).map_err(fail)?;
                let inner: Arc<dyn ObjectStore> = match prefix.as_ref().is_empty() {
                    true => Arc::new(s3.clone()),
                    false => Arc::new(PrefixStore::new(s3.clone(), prefix.clone())),
                };
                let versions = Some(Versions { s3, prefix: prefix.clone() });
                Ok(Store { shown: self.shown.clone(), inner, versions, home: None })
            }
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

fn bucket(name: &str, options: &StoreOptions) -> Result<AmazonS3, object_store::Error> {
    tls::ready();
    // Buckets with object lock want to be told that there is a checksum; Amazon's own clients always do.
    let headers = HeaderMap::from_iter([(
        HeaderName::from_static("x-amz-sdk-checksum-algorithm"),
        HeaderValue::from_static("SHA256"),
    )]);
    let mut client = ClientOptions::new()
        .with_timeout(REQUEST_TIMEOUT)
        .with_connect_timeout(CONNECT_TIMEOUT)
        .with_default_headers(headers);
    // What is set here replaces what the builder reads from the environment.
    if options.allow_http || std::env::var("AWS_ALLOW_HTTP").is_ok_and(|allow| allow == "true" || allow == "1") {
        client = client.with_allow_http(true);
    }
    // It does not try again by itself: each failure is to be counted, and waits are ours.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(name)
        .with_client_options(client)
        .with_retry(retry)
        .with_checksum_algorithm(Checksum::SHA256);
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    if let Some(endpoint) = &options.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    builder.build()
}

/// An open store.
#[derive(Clone)]
pub(crate) struct Store {
    shown: String,
    pub(crate) inner: Arc<dyn ObjectStore>,
    pub(crate) versions: Option<Versions>,
    home: Option<(PathBuf, Identity)>,
}

impl Store {
    /// Whether it is still the one that was opened: a directory may be unmounted or exchanged, and writing into what
    /// lies below would look like success.
    pub(crate) fn still_there(&self) -> Result<(), StoreError> {
        match &self.home {
            Some((dir, identity)) if Identity::of(dir).as_ref() != Some(identity) => {
                Err(StoreError::Replaced { url: self.shown.clone() })
            }
            _ => Ok(()),
        }
    }
}

impl fmt::Display for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Store").field(&self.shown).finish()
    }
}

/// What it takes to delete one version of an object, which the common interface cannot.
#[derive(Clone)]
pub(crate) struct Versions {
    pub(crate) s3: AmazonS3,
    prefix: Path,
}

impl Versions {
    /// The object's path from the bucket's root.
    pub(crate) fn whole(&self, path: &Path) -> Path {
        self.prefix.parts().chain(path.parts()).collect()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Identity(u64, u64);

impl Identity {
    fn of(dir: &std::path::Path) -> Option<Self> {
        use std::os::unix::fs::MetadataExt;
        std::fs::metadata(dir).ok().map(|meta| Self(meta.dev(), meta.ino()))
    }
}

/// A URL without what might be a secret.
pub(crate) fn redacted(text: &str) -> String {
    match Url::parse(text) {
        Ok(mut url) => {
            let _ = url.set_username("");
            let _ = url.set_password(None);
            url.set_query(None);
            url.to_string()
        }
        Err(_) => text.chars().take(80).collect(),
    }
}

/// Why a store cannot be had.
#[non_exhaustive]
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The URL is none of ours.
    #[error("{url} is no place for a replica: {why}")]
    Url {
        /// What was given.
        url: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The client or the directory could not be opened.
    #[error(
        "the replica {url} cannot be opened: {source}; check that the directory exists, or the endpoint and the AWS_* variables"
    )]
    Open {
        /// The store.
        url: String,
        /// What was said.
        source: object_store::Error,
    },
    /// The endpoint has no TLS, and nobody allowed that.
    #[error(
        "{endpoint} is spoken to without TLS, where anybody on the way may change what is said: use https, or set allow_http"
    )]
    Plain {
        /// The endpoint.
        endpoint: String,
    },
    /// The directory is not the one that was opened.
    #[error("the replica {url} is not the directory that it was: it was unmounted, moved or exchanged; mount it again")]
    Replaced {
        /// The store.
        url: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_kinds_of_url_are_understood() {
        for good in ["s3://bucket", "s3://bucket/", "s3://bucket/a/b", "file:///var/lib/replica", "file:///"] {
            let location = Location::parse(good).unwrap();
            assert_eq!(location.to_string(), good.trim_end_matches('/'), "shown as given");
        }
        let Place::Bucket { name, prefix } = Location::parse("s3://bucket/a/b/").unwrap().place else { panic!() };
        assert_eq!((name.as_str(), prefix.as_ref()), ("bucket", "a/b"));
    }

    #[test]
    fn anything_else_is_refused_and_no_secret_repeated() {
        for bad in [
            "",
            "/dir",
            "dir",
            "s3://",
            "s3:///a",
            "http://h/b",
            "gs://b",
            "file://host/dir",
            "s3://b/a?x=1",
            "s3://b:80/a",
        ] {
            assert!(Location::parse(bad).is_err(), "{bad}");
        }
        let error = Location::parse("s3://user:hunter2@bucket/a?token=hunter2").unwrap_err().to_string();
        assert!(!error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_directory_has_to_be_there_and_to_stay_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().join("replica");
        let location = Location::parse(&format!("file://{}", home.display())).unwrap();
        assert!(location.open(&StoreOptions::default()).is_err(), "made where nothing is mounted");
        std::fs::create_dir(&home).unwrap();
        let store = location.open(&StoreOptions::default()).unwrap();
        assert!(store.still_there().is_ok());
        std::fs::rename(&home, dir.path().join("gone")).unwrap();
        assert!(matches!(store.still_there(), Err(StoreError::Replaced { .. })));
        std::fs::create_dir(&home).unwrap();
        assert!(matches!(store.still_there(), Err(StoreError::Replaced { .. })), "another one");
    }

    #[test]
    fn plain_http_takes_leave() {
        let endpoint = Some(String::from("http://127.0.0.1:1"));
        let options = StoreOptions { endpoint, region: None, allow_http: false };
        let refused = Location::parse("s3://bucket/p").unwrap().open(&options);
        assert!(matches!(refused, Err(StoreError::Plain { .. })), "{refused:?}");
    }
}
