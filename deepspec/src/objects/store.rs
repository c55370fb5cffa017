//! Copies of objects, through the `object_store` crate.

use std::path::{Path, PathBuf};

use dspark_runtime::checkpoint::{CheckpointError, cache_folder, write_file_with};
use futures_util::{StreamExt, TryStreamExt};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt, parse_url_opts};
use tokio::runtime::{Builder, Runtime};
use url::Url;

use super::ObjectError;
use crate::digest::digest;

/// Objects that are copied at the same time.
const AT_ONCE: usize = 8;

/// See [`super::fetch`] without the feature.
pub fn fetch(url: &str, is_data: impl Fn(&Path) -> bool) -> Result<Vec<PathBuf>, ObjectError> {
    let copies = cache_folder("objects").ok_or_else(|| ObjectError::NoFolder { url: url.to_owned() })?;
    let source = Source::open(url)?;
    let objects = source.list(is_data)?;
    let bytes: u64 = objects.iter().map(|object| object.size).sum();
    eprintln!(
        "{url}: {} objects, {:.1} MB, copied once into {}",
        objects.len(),
        bytes as f64 / 1e6,
        copies.display()
    );
    let copy = |objects: &[ObjectMeta]| -> Result<Vec<PathBuf>, ObjectError> {
        std::thread::scope(|scope| {
            let copies = &copies;
            let threads: Vec<_> = objects.iter().map(|object| scope.spawn(|| source.copy(object, copies))).collect();
            let lost = |_| Err(failed(url, "a thread that copied an object panicked".to_owned()));
            threads.into_iter().map(|thread| thread.join().unwrap_or_else(lost)).collect()
        })
    };
    Ok(objects.chunks(AT_ONCE).map(copy).collect::<Result<Vec<_>, _>>()?.concat())
}

/// A place in a store.
struct Source<'a> {
    url: &'a str,
    store: Box<dyn ObjectStore>,
    path: object_store::path::Path,
    runtime: Runtime,
}

impl<'a> Source<'a> {
    fn open(url: &'a str) -> Result<Self, ObjectError> {
        let failed = |reason: String| failed(url, reason);
        let parsed = Url::parse(url).map_err(|error| failed(error.to_string()))?;
        // The stores' clients know their variables in lower case.
        let variables = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?.to_ascii_lowercase(), value.into_string().ok()?))
        });
        let (store, path) = parse_url_opts(&parsed, variables).map_err(|error| failed(error.to_string()))?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { url, store, path, runtime })
    }

    /// The object that the URL names, or those below it, in the order of their names.
    fn list(&self, is_data: impl Fn(&Path) -> bool) -> Result<Vec<ObjectMeta>, ObjectError> {
        let failed = |error: object_store::Error| failed(self.url, error.to_string());
        match self.runtime.block_on(self.store.head(&self.path)) {
            Ok(object) => return Ok(vec![object]),
            Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(failed(error)),
        }
        let listed: Vec<ObjectMeta> =
            self.runtime.block_on(self.store.list(Some(&self.path)).try_collect()).map_err(failed)?;
        let found = listed.len();
        let mut objects: Vec<ObjectMeta> =
            listed.into_iter().filter(|object| is_data(Path::new(object.location.as_ref()))).collect();
        if objects.is_empty() {
            let found = if found == 0 { "nothing".to_owned() } else { format!("{found} others") };
            return Err(ObjectError::Nothing { url: self.url.to_owned(), found });
        }
        objects.sort_by(|a, b| a.location.cmp(&b.location));
        Ok(objects)
    }

    /// Copies an object, unless its copy is there already.
    fn copy(&self, object: &ObjectMeta, folder: &Path) -> Result<PathBuf, ObjectError> {
        let version = object.e_tag.clone().or_else(|| object.version.clone());
        let version = version.unwrap_or_else(|| object.last_modified.to_rfc3339());
        let key = digest(&[self.place(), object.location.as_ref(), &version, &object.size.to_string()]);
        let path = folder.join(key).join(object.location.filename().unwrap_or("object"));
        if std::fs::metadata(&path).is_ok_and(|copy| copy.len() == object.size) {
            return Ok(path);
        }
        let stored = |error: object_store::Error| failed(self.url, error.to_string());
        let answer = self.runtime.block_on(self.store.get(&object.location)).map_err(stored)?;
        if answer.meta.e_tag != object.e_tag {
            return Err(failed(self.url, format!("{} changed while it was read; start again", object.location)));
        }
        let mut parts = answer.into_stream();
        write_file_with(&path, |file| {
            let mut bytes = 0;
            while let Some(part) = self.runtime.block_on(parts.next()) {
                let part = part.map_err(stored)?;
                bytes += part.len() as u64;
                file.write_all(&part).map_err(CheckpointError::io(&path))?;
            }
            match bytes == object.size {
                true => Ok(()),
                false => {
                    let reason = format!("{}: expected {} bytes, received {bytes}", object.location, object.size);
                    Err(failed(self.url, reason))
                }
            }
        })?;
        Ok(path)
    }

    /// Scheme and host or bucket of the URL.
    fn place(&self) -> &str {
        let path = self.url.find("://").map_or(0, |scheme| scheme + 3);
        self.url[path..].find('/').map_or(self.url, |end| &self.url[..path + end])
    }
}

fn failed(url: &str, reason: String) -> ObjectError {
    ObjectError::Store { url: url.to_owned(), reason, variables: "AWS_*, GOOGLE_* or AZURE_*" }
}
