//! An object store in memory that fails as told, and remembers in which order what was written.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Mode {
    Good = 0,
    /// Every request fails, before anything happened.
    Down = 1,
    /// One of three writes fails before, one of three fails after it happened, at random.
    Flaky = 2,
    /// No request is ever answered.
    Hangs = 3,
    /// Conditions are ignored: every write succeeds.
    Lax = 4,
    /// The first attempt to create is answered with "already exists" although nothing was written.
    Liar = 5,
}

#[derive(Debug, Default)]
pub(crate) struct Faulty {
    pub(crate) inner: InMemory,
    mode: AtomicU32,
    random: AtomicU64,
    /// Writes that happened, in order.
    pub(crate) writes: Mutex<Vec<(String, Bytes)>>,
    pub(crate) requests: AtomicUsize,
    busy: AtomicUsize,
    /// The most writes that were on their way at once, the probe's aside.
    pub(crate) most: AtomicUsize,
    lied: Mutex<BTreeMap<String, u32>>,
}

impl Faulty {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        Arc::new(Self { random: AtomicU64::new(seed), ..Self::default() })
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u32, SeqCst);
    }

    fn is(&self, mode: Mode) -> bool {
        self.mode.load(SeqCst) == mode as u32
    }

    fn random(&self) -> u64 {
        let mut z = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, SeqCst);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    async fn gate(&self) -> Result<()> {
        self.requests.fetch_add(1, SeqCst);
        tokio::task::yield_now().await;
        while self.is(Mode::Hangs) {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        if self.is(Mode::Down) { Err(failure("the store is down")) } else { Ok(()) }
    }
}

fn failure(why: &'static str) -> Error {
    Error::Generic { store: "test", source: why.into() }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("test store")
    }
}

#[async_trait]
impl ObjectStore for Faulty {
    async fn put_opts(&self, path: &Path, payload: PutPayload, mut options: PutOptions) -> Result<PutResult> {
        let counted = !path.as_ref().starts_with("probe/");
        if counted {
            let busy = self.busy.fetch_add(1, SeqCst) + 1;
            self.most.fetch_max(busy, SeqCst);
        }
        let result = async {
            self.gate().await?;
            let dice = if self.is(Mode::Flaky) && counted { self.random() % 3 } else { 2 };
            if dice == 0 {
                return Err(failure("lost before it was written"));
            }
            if self.is(Mode::Lax) {
                options.mode = PutMode::Overwrite;
            }
            if self.is(Mode::Liar) && counted && options.mode == PutMode::Create {
                let mut lied = self.lied.lock().unwrap();
                let times = lied.entry(path.to_string()).or_default();
                *times += 1;
                if *times == 1 {
                    return Err(Error::AlreadyExists { path: path.to_string(), source: "conflict of requests".into() });
                }
            }
            let bytes = Bytes::from(payload.clone());
            let done = self.inner.put_opts(path, payload, options).await?;
            self.writes.lock().unwrap().push((path.to_string(), bytes));
            if dice == 1 { Err(failure("the answer was lost")) } else { Ok(done) }
        };
        let result = result.await;
        if counted {
            self.busy.fetch_sub(1, SeqCst);
        }
        result
    }

    async fn put_multipart_opts(&self, path: &Path, options: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(path, options).await
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.gate().await?;
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(&self, paths: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
