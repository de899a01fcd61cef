//! A layer between SQLite and its files (a VFS, <https://www.sqlite.org/vfs.html>): SQLite's own
//! for every file that has a name, and ours for those that have none.
//!
//! A file with a name is opened by SQLite's own layer, into the memory that SQLite gave for it: its
//! locks, its WAL and its shared memory are as they are without this layer, and so is what
//! `sqlite_file` opens beside it.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::{ptr, slice};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_io_methods, sqlite3_vfs};

use super::file::TemporaryFile;
use super::room::{Room, room};

/// The name of the layer whose temporary files lie in `dir`. It stays until the end of the process.
///
/// # Errors
///
/// SQLite has no layer of its own for this system.
pub(in crate::sqlcipher) fn layer_of(dir: &Path) -> rusqlite::Result<&'static CStr> {
    static LAYERS: Mutex<BTreeMap<PathBuf, &'static CStr>> = Mutex::new(BTreeMap::new());
    let mut layers = LAYERS.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(name) = layers.get(dir) {
        return Ok(name);
    }
    let name = register(layers.len(), room(dir))?;
    layers.insert(dir.to_owned(), name);
    Ok(name)
}

/// The layer as SQLite has it; what is ours stands behind what is SQLite's.
#[repr(C)]
struct Layer {
    vfs: sqlite3_vfs,
    own: *mut sqlite3_vfs,
    room: &'static Room,
}

/// A temporary file as SQLite has it.
#[repr(C)]
struct Handle {
    base: sqlite3_file,
    file: *mut TemporaryFile,
}

fn register(number: usize, room: &'static Room) -> rusqlite::Result<&'static CStr> {
    let failed = |code| rusqlite::Error::SqliteFailure(ffi::Error::new(code), None);
    let name = CString::new(format!("nimbus-{number}"));
    let name: &'static CStr = Box::leak(name.unwrap_or_default().into_boxed_c_str());
    // SAFETY: finding the default layer has no preconditions; SQLite never frees it.
    let own = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    // SAFETY: it is null or valid, and its fields do not change once it is registered, but for the
    // link that is replaced here.
    let copy = unsafe { own.as_ref() }.copied();
    let Some(copy) = copy else {
        return Err(failed(ffi::SQLITE_ERROR));
    };
    let ours = c_int::try_from(size_of::<Handle>()).unwrap_or(c_int::MAX);
    let vfs = sqlite3_vfs {
        szOsFile: copy.szOsFile.max(ours),
        pNext: ptr::null_mut(),
        zName: name.as_ptr(),
        xOpen: Some(open),
        ..copy
    };
    let layer = Box::into_raw(Box::new(Layer { vfs, own, room }));
    // SAFETY: the layer is valid and never freed, and so is its name; its other functions are those
    // of SQLite's own, with its data.
    match unsafe { ffi::sqlite3_vfs_register(layer.cast(), 0) } {
        ffi::SQLITE_OK => Ok(name),
        code => Err(failed(code)),
    }
}

unsafe extern "C" fn open(
    vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    granted: *mut c_int,
) -> c_int {
    // SAFETY: SQLite calls this with the layer that it is of, which is never freed and never
    // changed but for its link.
    let (own, room) = unsafe {
        let layer = vfs.cast::<Layer>();
        ((*layer).own, (*layer).room)
    };
    if !name.is_null() && flags & TEMPORARY == 0 {
        // SAFETY: it was found when the layer was registered.
        let Some(open) = (unsafe { (*own).xOpen }) else {
            return ffi::SQLITE_CANTOPEN;
        };
        // SAFETY: the arguments are SQLite's, meant for this function, and there is as much memory
        // for the file as it asks for.
        return unsafe { open(own, name, file, flags, granted) };
    }
    // SAFETY: SQLite gives memory for a file of this layer. Without methods it is not closed.
    unsafe { (*file).pMethods = ptr::null() };
    let new = catch_unwind(|| TemporaryFile::new(room));
    let temporary = match new {
        Ok(Ok(temporary)) => Box::new(temporary),
        Ok(Err(error)) => {
            tracing::warn!(dir = %room.dir().display(), %error, "a temporary file cannot be made");
            return ffi::SQLITE_CANTOPEN;
        }
        Err(_panic) => return ffi::SQLITE_CANTOPEN,
    };
    let handle = Handle {
        base: sqlite3_file { pMethods: &METHODS },
        file: Box::into_raw(temporary),
    };
    // SAFETY: there is as much memory, aligned for pointers, as the layer asks for.
    unsafe { file.cast::<Handle>().write(handle) };
    if !granted.is_null() {
        // SAFETY: there is a place for them.
        unsafe { granted.write(flags) };
    }
    ffi::SQLITE_OK
}

/// What a method does with its file. A panic is a failure of the disk to SQLite, which must not be
/// unwound.
///
/// # Safety
///
/// `file` was opened by [`open`] as ours, and nobody else uses it at the same time.
unsafe fn on(
    file: *mut sqlite3_file,
    failure: c_int,
    work: impl FnOnce(&mut TemporaryFile) -> io::Result<c_int>,
) -> c_int {
    // SAFETY: as the caller promises; the box is freed by `close` alone.
    let file = unsafe { &mut *(*file.cast::<Handle>()).file };
    match catch_unwind(AssertUnwindSafe(|| work(file))) {
        Ok(Ok(code)) => code,
        Ok(Err(error)) => match error.kind() {
            io::ErrorKind::StorageFull
            | io::ErrorKind::QuotaExceeded
            | io::ErrorKind::FileTooLarge => ffi::SQLITE_FULL,
            io::ErrorKind::InvalidData => {
                tracing::error!(
                    "a temporary file is not as it was written: its disk is faulty, or somebody changed it"
                );
                ffi::SQLITE_IOERR_DATA
            }
            _ => {
                tracing::error!(%error, "a temporary file cannot be used");
                failure
            }
        },
        Err(_panic) => failure,
    }
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: it was made by `open`, and SQLite closes it once.
    drop(unsafe { Box::from_raw((*file.cast::<Handle>()).file) });
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(
    file: *mut sqlite3_file,
    out: *mut c_void,
    length: c_int,
    offset: i64,
) -> c_int {
    let Some((length, offset)) = place(length, offset) else {
        return ffi::SQLITE_IOERR_READ;
    };
    // SAFETY: there is room for so many bytes, which SQLite has allocated, and they are this
    // function's until it returns.
    let out = unsafe {
        ptr::write_bytes(out.cast::<u8>(), 0, length);
        slice::from_raw_parts_mut(out.cast::<u8>(), length)
    };
    // SAFETY: SQLite gives a file that `open` opened, which one thread uses at a time.
    unsafe {
        on(file, ffi::SQLITE_IOERR_READ, |file| {
            let read = file.read_at(out, offset)?;
            Ok(if read == length {
                ffi::SQLITE_OK
            } else {
                ffi::SQLITE_IOERR_SHORT_READ
            })
        })
    }
}

unsafe extern "C" fn write(
    file: *mut sqlite3_file,
    data: *const c_void,
    length: c_int,
    offset: i64,
) -> c_int {
    let Some((length, offset)) = place(length, offset) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    // SAFETY: there are so many bytes, and nobody changes them before this returns.
    let data = unsafe { slice::from_raw_parts(data.cast::<u8>(), length) };
    // SAFETY: as in `read`.
    unsafe {
        on(file, ffi::SQLITE_IOERR_WRITE, |file| {
            file.write_at(data, offset)?;
            Ok(ffi::SQLITE_OK)
        })
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, length: i64) -> c_int {
    let Some((_none, length)) = place(0, length) else {
        return ffi::SQLITE_IOERR_TRUNCATE;
    };
    // SAFETY: as in `read`.
    unsafe {
        on(file, ffi::SQLITE_IOERR_TRUNCATE, |file| {
            file.set_len(length)?;
            Ok(ffi::SQLITE_OK)
        })
    }
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut i64) -> c_int {
    // SAFETY: as in `read`, and there is a place for the answer.
    unsafe {
        on(file, ffi::SQLITE_IOERR_FSTAT, |file| {
            size.write(i64::try_from(file.len()).unwrap_or(i64::MAX));
            Ok(ffi::SQLITE_OK)
        })
    }
}

/// It need not outlive a crash.
unsafe extern "C" fn sync(_file: *mut sqlite3_file, _flags: c_int) -> c_int {
    ffi::SQLITE_OK
}

/// Nobody else has it.
unsafe extern "C" fn lock(_file: *mut sqlite3_file, _level: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn is_reserved(_file: *mut sqlite3_file, answer: *mut c_int) -> c_int {
    // SAFETY: there is a place for the answer.
    unsafe { answer.write(0) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn control(_file: *mut sqlite3_file, _what: c_int, _about: *mut c_void) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_file: *mut sqlite3_file) -> c_int {
    super::file::BLOCK as c_int
}

unsafe extern "C" fn characteristics(_file: *mut sqlite3_file) -> c_int {
    0
}

/// A length and an offset as Rust counts them.
fn place(length: c_int, offset: i64) -> Option<(usize, u64)> {
    Some((usize::try_from(length).ok()?, u64::try_from(offset).ok()?))
}

/// Without shared memory and without mapped reads: what is mapped would be ciphertext.
static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(is_reserved),
    xFileControl: Some(control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

/// Kinds of files that nobody opens again.
const TEMPORARY: c_int = ffi::SQLITE_OPEN_TEMP_DB
    | ffi::SQLITE_OPEN_TRANSIENT_DB
    | ffi::SQLITE_OPEN_TEMP_JOURNAL
    | ffi::SQLITE_OPEN_SUBJOURNAL;
