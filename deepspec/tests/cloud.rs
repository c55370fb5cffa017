//! Data in object storage, from a small server that answers as S3 does.
#![cfg(feature = "cloud")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use common::program;

const ROW: &str = "{\"prompt\": \"Name a prime.\", \"response\": \"7 is a prime, and so is 11.\"}\n";

/// A bucket named `data`. Counts the objects that were sent.
struct Bucket {
    address: String,
    sent: Arc<AtomicUsize>,
}

impl Bucket {
    /// `short` objects lose their last byte on the way.
    fn serve(objects: BTreeMap<String, Vec<u8>>, short: bool) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let sent = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&sent);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                answer(stream.unwrap(), &objects, short, &counted);
            }
        });
        Self { address, sent }
    }
}

fn answer(mut stream: TcpStream, objects: &BTreeMap<String, Vec<u8>>, short: bool, sent: &AtomicUsize) {
    let mut head = BufReader::new(stream.try_clone().unwrap());
    let mut first = String::new();
    head.read_line(&mut first).unwrap();
    let mut line = String::new();
    while head.read_line(&mut line).is_ok_and(|bytes| bytes > 2) {
        line.clear();
    }
    let mut words = first.split(' ');
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let key = path.strip_prefix("/data").unwrap().trim_start_matches('/');
    if query.contains("list-type=2") {
        let prefix = query.split('&').find_map(|part| part.strip_prefix("prefix=")).unwrap_or("").replace("%2F", "/");
        let mut list = String::from("<?xml version=\"1.0\"?><ListBucketResult><IsTruncated>false</IsTruncated>");
        for (key, body) in objects.iter().filter(|(key, _)| key.starts_with(&prefix)) {
            let size = body.len();
            let _ = write!(
                list,
                "<Contents><Key>{key}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
                 <ETag>&quot;{size}&quot;</ETag><Size>{size}</Size></Contents>"
            );
        }
        list.push_str("</ListBucketResult>");
        return respond(&mut stream, "200 OK", list.len(), "list", list.as_bytes());
    }
    match objects.get(key) {
        None => respond(&mut stream, "404 Not Found", 0, "none", b""),
        Some(body) => {
            let size = body.len();
            let body: &[u8] = if method == "HEAD" { b"" } else { &body[..size - usize::from(short)] };
            sent.fetch_add(usize::from(method == "GET"), Ordering::Relaxed);
            respond(&mut stream, "200 OK", size, &size.to_string(), body);
        }
    }
}

fn respond(stream: &mut TcpStream, status: &str, length: usize, tag: &str, body: &[u8]) {
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nETag: \"{tag}\"\r\nLast-Modified: Thu, 01 Jan 2026 00:00:00 \
         GMT\r\nConnection: close\r\n\r\n"
    );
    // A client that breaks off is its own affair.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body));
}

fn objects() -> BTreeMap<String, Vec<u8>> {
    let rows =
        |count: usize| (0..count).map(|row| ROW.replace("prime.", &format!("prime {row}."))).collect::<String>();
    [("chats/a.jsonl", rows(3)), ("chats/b.jsonl", rows(5)), ("chats/README.md", "not data".to_owned())]
        .map(|(key, text)| (key.to_owned(), text.into_bytes()))
        .into()
}

fn prepare(bucket: &Bucket, url: &str, root: &Path, out: &str) -> Output {
    let out = root.join(out);
    program()
        .args(["prepare", url, "--out", out.to_str().unwrap()])
        .env("XDG_CACHE_HOME", root.join("cache"))
        .env("AWS_ENDPOINT", &bucket.address)
        .env("AWS_ALLOW_HTTP", "true")
        .env("AWS_SKIP_SIGNATURE", "true")
        .env("AWS_REGION", "none")
        .output()
        .unwrap()
}

#[test]
fn objects_are_copied_once_and_read_like_files() {
    let (root, bucket) = (tempfile::tempdir().unwrap(), Bucket::serve(objects(), false));
    let first = prepare(&bucket, "s3://data/chats", root.path(), "first");
    let text = String::from_utf8_lossy(&first.stdout);
    // The three rows of the first object are in the second, too.
    assert!(first.status.success() && text.contains("8 rows read, 5 written"), "{text}{first:?}");
    assert_eq!(bucket.sent.load(Ordering::Relaxed), 2);
    let second = prepare(&bucket, "s3://data/chats/b.jsonl", root.path(), "second");
    let text = String::from_utf8_lossy(&second.stdout);
    assert!(second.status.success() && text.contains("5 rows read, 5 written"), "{text}{second:?}");
    assert_eq!(bucket.sent.load(Ordering::Relaxed), 2, "an object was copied twice");
}

#[test]
fn a_missing_object_and_a_reply_that_breaks_off_are_named() {
    let root = tempfile::tempdir().unwrap();
    let refused = |short: bool, url: &str| {
        let output = prepare(&Bucket::serve(objects(), short), url, root.path(), "out");
        assert!(!output.status.success() && !root.path().join("out").exists());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    let said = refused(false, "s3://data/other");
    assert!(said.contains("s3://data/other") && said.contains("found nothing"), "{said}");
    let said = refused(true, "s3://data/chats/a.jsonl");
    assert!(said.contains("s3://data/chats/a.jsonl"), "{said}");
    let copies = std::fs::read_dir(root.path().join("cache/dspark/objects")).unwrap();
    for folder in copies {
        assert_eq!(std::fs::read_dir(folder.unwrap().path()).unwrap().count(), 0, "a part of an object was kept");
    }
}
