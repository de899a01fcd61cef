//! Files that SQLite is handed open, because they have no name.
//!
//! SQLite opens by name, and its own layer resolves `/proc/self/fd/7` to a name that no longer stands for the file, and makes a new one there.
//! So this is a layer of ours (<https://www.sqlite.org/vfs.html>) that takes the number of an open file for its name. It is for one
//! database that one connection fills without journal or WAL: it locks nothing and knows no second file.
#![expect(
    unsafe_code,
    reason = "a VFS is a table of C functions; there is no safe binding for it"
)]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::fs::File;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd as _, BorrowedFd, RawFd};
use std::os::unix::fs::FileExt as _;
use std::ptr;
use std::sync::OnceLock;

use rusqlite::ffi;

/// What to attach so that SQLite works on `file`, of which it takes a handle of its own.
pub(super) fn uri(file: &File) -> rusqlite::Result<String> {
    static REGISTERED: OnceLock<c_int> = OnceLock::new();
    match *REGISTERED.get_or_init(register) {
        ffi::SQLITE_OK => Ok(format!(
            "file:{}?vfs={}",
            file.as_raw_fd(),
            NAME.to_string_lossy()
        )),
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

/// Makes the layer known to SQLite, for as long as the process lives.
fn register() -> c_int {
    // SAFETY: finding the default layer has no preconditions.
    let base = unsafe { ffi::sqlite3_vfs_find(ptr::null()) };
    if base.is_null() {
        return ffi::SQLITE_NOTFOUND;
    }
    // SAFETY: it is a valid structure that SQLite never frees; what is copied is numbers and pointers.
    let mut vfs = unsafe { ptr::read(base) };
    // What stays of the default layer (randomness, sleep, the clock) does not look at the structure that it is called with.
    vfs.iVersion = 1;
    vfs.szOsFile = size_of::<Handed>() as c_int;
    vfs.pNext = ptr::null_mut();
    vfs.zName = NAME.as_ptr();
    vfs.xOpen = Some(open);
    vfs.xDelete = Some(delete);
    vfs.xAccess = Some(access);
    vfs.xFullPathname = Some(full_pathname);
    // SAFETY: the structure is leaked, and so outlives SQLite's list of layers; its name is static.
    unsafe { ffi::sqlite3_vfs_register(Box::into_raw(Box::new(vfs)), 0) }
}

/// SQLite allocates this, as long as the layer says, and the layer fills it in.
#[repr(C)]
struct Handed {
    base: ffi::sqlite3_file,
    file: ManuallyDrop<File>,
}

/// # Safety
///
/// `file` was filled in by [`open`], and not closed since.
unsafe fn file<'a>(file: *mut ffi::sqlite3_file) -> &'a File {
    // SAFETY: as the caller promises; SQLite calls the methods of one file one at a time.
    unsafe { &(*file.cast::<Handed>()).file }
}

unsafe extern "C" fn open(
    _vfs: *mut ffi::sqlite3_vfs,
    name: ffi::sqlite3_filename,
    file: *mut ffi::sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let handed = file.cast::<Handed>();
    // SAFETY: SQLite gives memory of the length that the layer asked for. Without methods, a file that failed to open is not closed.
    unsafe { (*handed).base.pMethods = ptr::null() };
    if name.is_null() || flags & ffi::SQLITE_OPEN_MAIN_DB == 0 {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: a name that is not null is a C string.
    let number = unsafe { CStr::from_ptr(name) }.to_str().ok();
    let Some(number) = number.and_then(|name| name.parse::<RawFd>().ok()) else {
        return ffi::SQLITE_CANTOPEN;
    };
    if number < 0 {
        return ffi::SQLITE_CANTOPEN;
    }
    // SAFETY: borrowed for this call alone; the number is the one that `uri` took from a file that its caller keeps open.
    let Ok(own) = (unsafe { BorrowedFd::borrow_raw(number) }).try_clone_to_owned() else {
        return ffi::SQLITE_CANTOPEN;
    };
    // SAFETY: the memory is SQLite's and long enough; nothing was there that would have to be dropped.
    unsafe {
        ptr::write(&raw mut (*handed).file, ManuallyDrop::new(own.into()));
        (*handed).base.pMethods = &raw const METHODS;
        if !out_flags.is_null() {
            *out_flags = flags;
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn delete(
    _vfs: *mut ffi::sqlite3_vfs,
    _name: *const c_char,
    _sync: c_int,
) -> c_int {
    ffi::SQLITE_OK
}

/// There is no journal beside the file.
unsafe extern "C" fn access(
    _vfs: *mut ffi::sqlite3_vfs,
    _name: *const c_char,
    _flags: c_int,
    out: *mut c_int,
) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

/// The name as it is.
unsafe extern "C" fn full_pathname(
    _vfs: *mut ffi::sqlite3_vfs,
    name: *const c_char,
    room: c_int,
    out: *mut c_char,
) -> c_int {
    // SAFETY: the name is a C string.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
    if usize::try_from(room).is_ok_and(|room| name.len() <= room) {
        // SAFETY: there is room for the name and its end, which do not overlap.
        unsafe { ptr::copy_nonoverlapping(name.as_ptr(), out.cast(), name.len()) };
        return ffi::SQLITE_OK;
    }
    ffi::SQLITE_CANTOPEN
}

unsafe extern "C" fn close(file: *mut ffi::sqlite3_file) -> c_int {
    // SAFETY: `open` filled it in, and SQLite closes it once.
    unsafe { ManuallyDrop::drop(&mut (*file.cast::<Handed>()).file) };
    ffi::SQLITE_OK
}

unsafe extern "C" fn read(
    handle: *mut ffi::sqlite3_file,
    out: *mut c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    let (Ok(length), Ok(mut offset)) = (usize::try_from(length), u64::try_from(offset)) else {
        return ffi::SQLITE_IOERR_READ;
    };
    // SAFETY: SQLite gives room for so many bytes, and sees to it that they were written once.
    let mut out = unsafe { std::slice::from_raw_parts_mut(out.cast::<u8>(), length) };
    while !out.is_empty() {
        // SAFETY: `open` filled it in.
        match unsafe { file(handle) }.read_at(out, offset) {
            Ok(0) => {
                // What lies beyond the end counts as zeros.
                out.fill(0);
                return ffi::SQLITE_IOERR_SHORT_READ;
            }
            Ok(read) => {
                out = &mut out[read..];
                offset += read as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return ffi::SQLITE_IOERR_READ,
        }
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn write(
    handle: *mut ffi::sqlite3_file,
    data: *const c_void,
    length: c_int,
    offset: ffi::sqlite3_int64,
) -> c_int {
    let (Ok(length), Ok(offset)) = (usize::try_from(length), u64::try_from(offset)) else {
        return ffi::SQLITE_IOERR_WRITE;
    };
    // SAFETY: SQLite gives so many bytes.
    let data = unsafe { std::slice::from_raw_parts(data.cast::<u8>(), length) };
    // SAFETY: `open` filled it in.
    match unsafe { file(handle) }.write_all_at(data, offset) {
        Ok(()) => ffi::SQLITE_OK,
        Err(error) if error.kind() == std::io::ErrorKind::StorageFull => ffi::SQLITE_FULL,
        Err(_) => ffi::SQLITE_IOERR_WRITE,
    }
}

unsafe extern "C" fn truncate(handle: *mut ffi::sqlite3_file, size: ffi::sqlite3_int64) -> c_int {
    let Ok(size) = u64::try_from(size) else {
        return ffi::SQLITE_IOERR_TRUNCATE;
    };
    // SAFETY: `open` filled it in.
    match unsafe { file(handle) }.set_len(size) {
        Ok(()) => ffi::SQLITE_OK,
        Err(_) => ffi::SQLITE_IOERR_TRUNCATE,
    }
}

unsafe extern "C" fn sync(handle: *mut ffi::sqlite3_file, _flags: c_int) -> c_int {
    // SAFETY: `open` filled it in.
    match unsafe { file(handle) }.sync_all() {
        Ok(()) => ffi::SQLITE_OK,
        Err(_) => ffi::SQLITE_IOERR_FSYNC,
    }
}

unsafe extern "C" fn file_size(
    handle: *mut ffi::sqlite3_file,
    out: *mut ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: `open` filled it in.
    let size = unsafe { file(handle) }.metadata().map(|file| file.len());
    match size.map(i64::try_from) {
        Ok(Ok(size)) => {
            // SAFETY: SQLite gives a place for the answer.
            unsafe { *out = size };
            ffi::SQLITE_OK
        }
        _ => ffi::SQLITE_IOERR_FSTAT,
    }
}

/// Nobody else has the file.
unsafe extern "C" fn lock(_file: *mut ffi::sqlite3_file, _level: c_int) -> c_int {
    ffi::SQLITE_OK
}

unsafe extern "C" fn check_reserved_lock(_file: *mut ffi::sqlite3_file, out: *mut c_int) -> c_int {
    // SAFETY: SQLite gives a place for the answer.
    unsafe { *out = 0 };
    ffi::SQLITE_OK
}

unsafe extern "C" fn file_control(
    _file: *mut ffi::sqlite3_file,
    _operation: c_int,
    _argument: *mut c_void,
) -> c_int {
    ffi::SQLITE_NOTFOUND
}

unsafe extern "C" fn sector_size(_file: *mut ffi::sqlite3_file) -> c_int {
    4096
}

unsafe extern "C" fn device_characteristics(_file: *mut ffi::sqlite3_file) -> c_int {
    0
}

/// Of version 1: no WAL, no mapped memory.
static METHODS: ffi::sqlite3_io_methods = ffi::sqlite3_io_methods {
    iVersion: 1,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(lock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: None,
    xShmLock: None,
    xShmBarrier: None,
    xShmUnmap: None,
    xFetch: None,
    xUnfetch: None,
};

const NAME: &CStr = c"nimbus-handed";
