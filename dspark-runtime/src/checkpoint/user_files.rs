//! Opening files that a user names: regular files alone, read within bounds.
//!
//! A pipe may block forever and a device may never end, so both are refused before they are opened.

use std::fs::{self, File, FileType};
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Seek};
use std::path::Path;

/// Maximum size of a recipe, a table or a configuration, bytes.
pub const LARGEST_TEXT: u64 = 64 << 20;

/// Maximum length of a line of a JSON lines file, bytes.
pub const LONGEST_LINE: u64 = 16 << 20;

/// First bytes of some texts in UTF-8.
pub const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// First bytes of the files that Git LFS leaves in place of others.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// Opens a regular file for reading.
///
/// # Errors
/// Returns an error if the file cannot be opened; `InvalidInput` when the path leads to a folder, a pipe or a device; `InvalidData` when
/// the file is a Git LFS pointer.
pub fn open_file(path: &Path) -> io::Result<File> {
    let kind = fs::metadata(path)?.file_type();
    if !kind.is_file() {
        let reason = format!("expected a regular file, found {}", noun(kind));
        return Err(io::Error::new(ErrorKind::InvalidInput, reason));
    }
    let mut file = File::open(path)?;
    let mut start = Vec::new();
    file.by_ref().take(LFS_POINTER.len() as u64).read_to_end(&mut start)?;
    if start == LFS_POINTER {
        let reason = "this is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository, or download the \
                      model with `hf download NAME --local-dir DIR`";
        return Err(io::Error::new(ErrorKind::InvalidData, reason));
    }
    file.rewind()?;
    Ok(file)
}

/// Reads a regular file of up to `most` bytes.
///
/// # Errors
/// See [`open_file`]; `InvalidData` if the file is larger.
pub fn read_file(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    open_file(path)?.take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Err(too_large(&format!("expected at most {most} bytes, found more")));
    }
    Ok(bytes)
}

/// Reads a text file of up to `most` bytes.
///
/// # Errors
/// See [`read_file`]; `InvalidData` if the file is not UTF-8.
pub fn read_text(path: &Path, most: u64) -> io::Result<String> {
    String::from_utf8(read_file(path, most)?).map_err(|error| io::Error::new(ErrorKind::InvalidData, error))
}

/// The lines of a text that are not blank, each with its 1-based number, without a byte order mark and of up to
/// [`LONGEST_LINE`] bytes. Ends after the first error.
#[derive(Debug)]
pub struct Lines<R = BufReader<File>> {
    reader: R,
    number: usize,
    /// Where the newest line begins, bytes.
    start: u64,
    /// Bytes read.
    end: u64,
    ended: bool,
}

impl Lines {
    /// Returns the lines of a regular file.
    ///
    /// # Errors
    /// See [`open_file`].
    pub fn open(path: &Path) -> io::Result<Self> {
        Ok(Self::of(BufReader::new(open_file(path)?)))
    }
}

impl<R: BufRead> Lines<R> {
    /// Returns the lines of a text.
    pub fn of(reader: R) -> Self {
        Self { reader, number: 0, start: 0, end: 0, ended: false }
    }

    /// Returns the offset of the newest line in the text, bytes.
    pub fn offset(&self) -> u64 {
        self.start
    }

    /// Reads the next line; `None` at the end of the text.
    fn read(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        self.number += 1;
        let count = self.reader.by_ref().take(LONGEST_LINE + 1).read_until(b'\n', &mut line)?;
        if count == 0 {
            return Ok(None);
        }
        (self.start, self.end) = (self.end, self.end + count as u64);
        if line.last() == Some(&b'\n') {
            line.pop();
        }
        if line.len() as u64 > LONGEST_LINE {
            return Err(too_large(&format!("line {} has more than {LONGEST_LINE} bytes", self.number)));
        }
        Ok(Some(line))
    }
}

impl<R: BufRead> Iterator for Lines<R> {
    type Item = io::Result<(usize, Vec<u8>)>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.ended {
            match self.read() {
                Ok(Some(mut line)) => {
                    if self.number == 1 && line.starts_with(BYTE_ORDER_MARK) {
                        line.drain(..BYTE_ORDER_MARK.len());
                        self.start += BYTE_ORDER_MARK.len() as u64;
                    }
                    if !line.trim_ascii().is_empty() {
                        return Some(Ok((self.number, line)));
                    }
                }
                Ok(None) => self.ended = true,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
        None
    }
}

fn too_large(reason: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, reason.to_owned())
}

/// Returns the kind of a file that is not regular, for messages.
fn noun(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt;
        if kind.is_fifo() {
            return "a pipe";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "a device";
        }
        if kind.is_socket() {
            return "a socket";
        }
    }
    if kind.is_dir() { "a folder" } else { "something else" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn git_lfs_pointers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n").unwrap();
        let error = read_text(&path, LARGEST_TEXT).unwrap_err().to_string();
        assert!(error.contains("git lfs pull"), "{error}");
    }

    #[test]
    fn only_regular_files_are_opened() {
        let root = tempfile::tempdir().unwrap();
        let file = root.path().join("file");
        fs::write(&file, "text").unwrap();
        assert_eq!(read_text(&file, 4).unwrap(), "text");
        assert!(read_text(&file, 3).unwrap_err().to_string().contains("at most 3 bytes"));
        let refused = |path: &Path| open_file(path).unwrap_err().to_string();
        assert!(refused(root.path()).contains("found a folder"));
        assert_eq!(open_file(&root.path().join("none")).unwrap_err().kind(), ErrorKind::NotFound);
        #[cfg(unix)]
        {
            assert!(refused(Path::new("/dev/zero")).contains("found a device"));
            let socket = root.path().join("socket");
            let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
            assert!(refused(&socket).contains("found a socket"));
            // A link leads to what it names.
            let link = root.path().join("link");
            std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
            assert!(refused(&link).contains("found a device"));
        }
    }

    #[test]
    fn lines_are_numbered_and_bounded() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("rows.jsonl");
        fs::write(&path, "\u{feff}a\r\n\n  \nb").unwrap();
        let lines: Vec<_> = Lines::open(&path).unwrap().map(Result::unwrap).collect();
        assert_eq!(lines, [(1, b"a\r".to_vec()), (4, b"b".to_vec())]);
        let mut offsets = Lines::open(&path).unwrap();
        let mut next = || offsets.next().map(|line| line.is_ok()).map(|_| offsets.offset());
        assert_eq!([next(), next(), next()], [Some(3), Some(10), None]);
        let mut long = vec![b'x'; LONGEST_LINE as usize];
        long.extend(b"\ny");
        fs::write(&path, &long).unwrap();
        assert_eq!(Lines::open(&path).unwrap().map(|line| line.unwrap().1.len()).collect::<Vec<_>>(), [16 << 20, 1]);
        long.insert(0, b'x');
        fs::write(&path, &long).unwrap();
        let mut lines = Lines::open(&path).unwrap();
        assert!(lines.next().unwrap().unwrap_err().to_string().contains("line 1 has more than 16777216 bytes"));
        assert!(lines.next().is_none());
    }
}
