use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Map, json};
use tempfile::TempDir;

use super::*;
use crate::conversation::testing::{self, VOCABULARY_SIZE, lines, read_all};
use crate::conversation::{Format, SampleSet, split_validation};

/// Data, a tokeniser and a folder of stores.
struct Bench {
    root: TempDir,
    files: Vec<PathBuf>,
    digests: FileDigests,
    tokenizer: Tokenizer,
    options: ReadOptions,
    stores: PathBuf,
}

impl Bench {
    /// Two files with some rows each, one of them malformed.
    fn new(rows: usize) -> Self {
        let root = TempDir::new().unwrap();
        let row = |number: usize| {
            json!({"id": number, "prompt": format!("question {number}"), "response": format!("an answer of {number} and some length")})
                .to_string()
        };
        let first = lines(&root, "first.jsonl", &(0..rows).map(row).collect::<Vec<_>>());
        let mut others: Vec<String> = (rows..rows + 3).map(row).collect();
        others.insert(1, "[1]".to_owned());
        let second = lines(&root, "second.jsonl", &others);
        Self {
            digests: FileDigests::remembered_in(root.path().join("digests")),
            tokenizer: testing::tokenizer(Some("smollm2")),
            options: ReadOptions {
                format: Format::Chat,
                max_length: 512,
                minimum_supervised_tokens: 4,
                template_arguments: Map::new(),
                strict: false,
                cut_answers: false,
                vocabulary_size: VOCABULARY_SIZE,
            },
            stores: root.path().join("stores"),
            files: vec![first, second],
            root,
        }
    }

    fn request(&self) -> StoreRequest<'_> {
        StoreRequest {
            files: &self.files,
            digests: &self.digests,
            tokenizer: &self.tokenizer,
            tokenizer_digest: "tokeniser",
            options: &self.options,
            folder: &self.stores,
        }
    }

    fn open(&self) -> SampleStore {
        SampleStore::open(&self.request(), |notice| panic!("{notice}")).unwrap()
    }

    fn key(&self) -> String {
        self.request().key(&self.request().file_digests().unwrap())
    }

    /// The samples as the reader passes them.
    fn expected(&self) -> (Vec<Sample>, ReadReport) {
        read_all(&self.files, &self.tokenizer, &self.options).unwrap()
    }
}

fn all(set: &SampleSet) -> Vec<Sample> {
    set.iter().collect::<Result<_, _>>().unwrap()
}

/// More samples than a batch has, so that rows are found across batches.
const ROWS: usize = 600;

#[test]
fn a_store_holds_what_was_read_with_its_accounting() {
    let bench = Bench::new(ROWS);
    let (samples, report) = bench.expected();
    let store = bench.open();
    assert_eq!(store.report(), &report);
    assert_eq!((store.len(), report.malformed), (ROWS + 3, 1));
    assert_eq!(all(&store.into()), samples);
}

/// Without a template the rows cannot be read: the second start does not try.
#[test]
fn a_second_start_tokenises_nothing_wherever_the_data_are() {
    let mut bench = Bench::new(20);
    let (samples, _) = bench.expected();
    drop(bench.open());
    bench.tokenizer = testing::tokenizer(None);
    let moved: Vec<PathBuf> = ["x", "y"].map(|name| bench.root.path().join(name)).into();
    for (from, to) in bench.files.iter().zip(&moved) {
        fs::rename(from, to).unwrap();
    }
    bench.files = moved;
    let store = bench.open();
    assert_eq!(
        store.report().left_out[0].first.file,
        bench.files[1],
        "the report names the file as it is called now"
    );
    assert_eq!(all(&store.into()), samples);
    bench.options.max_length = 100;
    let error = SampleStore::open(&bench.request(), |_| {}).unwrap_err();
    assert!(matches!(error, ConversationError::NoChatTemplate { .. }), "{error}");
}

#[test]
fn everything_that_decides_the_samples_is_in_the_key() {
    let mut bench = Bench::new(2);
    let mut keys = vec![bench.key(), bench.request().key(&["other".to_owned()])];
    keys.push(
        StoreRequest { tokenizer_digest: "other", ..bench.request() }.key(&bench.request().file_digests().unwrap()),
    );
    let changes: [fn(&mut Bench); 9] = [
        |bench| bench.options.format = Format::Text,
        |bench| bench.options.max_length = 511,
        |bench| bench.options.minimum_supervised_tokens = 5,
        |bench| bench.options.strict = true,
        |bench| bench.options.cut_answers = true,
        |bench| bench.options.vocabulary_size += 1,
        |bench| drop(bench.options.template_arguments.insert("a".to_owned(), json!(1))),
        |bench| bench.files.reverse(),
        |bench| fs::write(&bench.files[0], "{}").unwrap(),
    ];
    for change in changes {
        change(&mut bench);
        keys.push(bench.key());
    }
    let count = keys.len();
    keys.sort();
    keys.dedup();
    assert_eq!(keys.len(), count);
}

#[test]
fn a_store_cut_at_any_length_is_made_again() {
    let bench = Bench::new(40);
    let (samples, _) = bench.expected();
    let path = bench.open().path().to_owned();
    let whole = fs::read(&path).unwrap();
    for length in (0..whole.len()).step_by(whole.len() / 60).chain(whole.len() - 12..whole.len()) {
        fs::write(&path, &whole[..length]).unwrap();
        let outcome = SampleStore::map(&path, &bench.key(), &bench.files);
        assert!(matches!(outcome, Err(Unusable::Damaged(_))), "cut to {length} of {}", whole.len());
    }
    let mut notices = Vec::new();
    let store = SampleStore::open(&bench.request(), |notice| notices.push(notice.to_owned())).unwrap();
    assert!(notices.len() == 1 && notices[0].contains("damaged"), "{notices:?}");
    assert!(fs::read(&path).unwrap() == whole, "equal data make equal bytes");
    assert_eq!(all(&store.into()), samples);
}

/// Wherever a bit flips: the store is refused, the sample is, or nothing of the samples changed.
#[test]
fn a_flipped_bit_never_reaches_a_sample() {
    let bench = Bench::new(ROWS);
    let (samples, _) = bench.expected();
    let path = bench.open().path().to_owned();
    let whole = fs::read(&path).unwrap();
    let mut dice = ChaCha8Rng::seed_from_u64(22);
    let (mut refused, mut rows) = (0, 0);
    for _ in 0..150 {
        let (place, bit) = (dice.random_range(0..whole.len()), dice.random_range(0..8));
        let mut bytes = whole.clone();
        bytes[place] ^= 1 << bit;
        // A new file: the mapping of the one before stays as it was.
        fs::remove_file(&path).unwrap();
        fs::write(&path, bytes).unwrap();
        let Ok(store) = SampleStore::map(&path, &bench.key(), &bench.files) else {
            refused += 1;
            continue;
        };
        assert_eq!(store.len(), samples.len());
        for (row, expected) in samples.iter().enumerate() {
            match store.sample(row as u64) {
                Ok(sample) => assert_eq!(&sample, expected, "byte {place}"),
                Err(ConversationError::DamagedStore { path: named, .. }) => {
                    assert_eq!(named, path);
                    rows += 1;
                }
                Err(error) => panic!("{error}"),
            }
        }
    }
    assert!(refused > 0 && rows > 50, "{refused} stores and {rows} samples refused");
}

#[test]
fn a_reading_that_fails_or_is_killed_leaves_nothing_that_is_used() {
    let bench = Bench::new(30);
    let strict = ReadOptions { strict: true, ..bench.options.clone() };
    let request = StoreRequest { options: &strict, ..bench.request() };
    let error = SampleStore::open(&request, |_| {}).unwrap_err();
    assert!(matches!(error, ConversationError::Malformed(_)), "{error}");
    let failed = bench.stores.join(request.key(&request.file_digests().unwrap()));
    assert!(!failed.join(FILE).exists());
    assert!(fs::read_dir(&failed).unwrap().all(|entry| entry.unwrap().file_name() == ".lock"));

    // What a killed process leaves: the beginning of the file, under a hidden name.
    let path = bench.open().path().to_owned();
    let whole = fs::read(&path).unwrap();
    let left = path.with_file_name(".samples.arrow.a1B2c3.partial");
    fs::rename(&path, &left).unwrap();
    fs::write(&left, &whole[..whole.len() / 2]).unwrap();
    let store = bench.open();
    assert!(!left.exists());
    assert!(fs::read(store.path()).unwrap() == whole);
}

#[test]
fn processes_that_start_together_share_one_store() {
    let bench = Bench::new(ROWS);
    let (expected, _) = bench.expected();
    let waited = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let store = SampleStore::open(&bench.request(), |notice| {
                    assert!(notice.contains("waiting for the process"), "{notice}");
                    waited.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(all(&store.unwrap().into()), expected);
            });
        }
    });
    assert!(waited.into_inner() <= 3);
    assert_eq!(fs::read_dir(&bench.stores).unwrap().count(), 1);
}

#[test]
fn a_stored_split_is_that_of_the_same_samples_in_memory() {
    let bench = Bench::new(ROWS);
    let (samples, _) = bench.expected();
    let store = bench.open();
    let path = store.path().to_owned();
    let kept = path.with_file_name("validation-0.1.rows");
    let memory = split_validation(samples.into(), 0.1).unwrap();
    let stored: SampleSet = store.into();
    let check = || {
        let split = split_validation(stored.clone(), 0.1).unwrap();
        assert_eq!(all(&split.validation), all(&memory.validation));
        assert_eq!(all(&split.training), all(&memory.training));
    };
    check();
    let bytes = fs::read(&kept).unwrap();
    check();
    fs::write(&kept, &bytes[1..]).unwrap();
    check();
    assert!(fs::read(&kept).unwrap() == bytes, "a damaged list is made again");
}

/// A store of a version of the reader is used by that version only. If this fails because the reader makes something else
/// of these rows, raise `READER_VERSION` and enter the new digest.
#[test]
fn the_readers_version_changes_with_what_it_makes_of_rows() {
    let bench = Bench::new(5);
    let mut sum = Sha256::new();
    for sample in bench.expected().0 {
        sum.update(format!("{sample:?}"));
    }
    let digest = crate::digest::hex(sum);
    assert_eq!((READER_VERSION, &digest[..16]), (2, "c9ad7b6f7dd7def1"));
}
