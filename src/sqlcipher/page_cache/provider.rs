//! A crypto provider for SQLCipher: its own, and the cache in front of it.
//!
//! The table of functions is that of `sqlcipher.h`; a test compares it with the source that is
//! built. SQLCipher makes a context for each connection when it is given its key, and uses it with
//! the connection, which one thread uses at a time.

use std::cell::RefCell;
use std::ffi::{c_char, c_int, c_uchar, c_void};
use std::ptr;
use std::sync::OnceLock;

use rusqlite::ffi::{SQLITE_ERROR, SQLITE_OK};
use zeroize::Zeroizing;

use super::super::page::CONTENT;
use super::cache::{Owner, Page};
use super::store::{Found, IV, MAC, Mac};

unsafe extern "C" {
    fn sqlcipher_register_provider(provider: *mut Provider) -> c_int;
    fn sqlcipher_get_provider() -> *mut Provider;
    fn sqlcipher_malloc(size: u64) -> *mut c_void;
}

/// `struct sqlcipher_provider`.
#[repr(C)]
struct Provider {
    functions: Functions,
    next: *mut Provider,
}

/// Its functions, in their order.
#[repr(C)]
#[derive(Clone, Copy)]
struct Functions {
    init: Option<unsafe extern "C" fn() -> c_int>,
    shutdown: Option<unsafe extern "C" fn()>,
    get_provider_name: Option<unsafe extern "C" fn(*mut c_void) -> *const c_char>,
    add_random: Option<unsafe extern "C" fn(*mut c_void, *const c_void, c_int) -> c_int>,
    random: Option<unsafe extern "C" fn(*mut c_void, *mut c_void, c_int) -> c_int>,
    hmac: Option<Hmac>,
    kdf: Option<Kdf>,
    cipher: Option<Cipher>,
    get_cipher: Option<unsafe extern "C" fn(*mut c_void) -> *const c_char>,
    get_key_sz: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    get_iv_sz: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    get_block_sz: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    get_hmac_sz: Option<unsafe extern "C" fn(*mut c_void, c_int) -> c_int>,
    ctx_init: Option<unsafe extern "C" fn(*mut *mut c_void) -> c_int>,
    ctx_free: Option<unsafe extern "C" fn(*mut *mut c_void) -> c_int>,
    fips_status: Option<unsafe extern "C" fn(*mut c_void) -> c_int>,
    get_provider_version: Option<unsafe extern "C" fn(*mut c_void) -> *const c_char>,
}

type Hmac = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    *const c_uchar,
    c_int,
    *const c_uchar,
    c_int,
    *const c_uchar,
    c_int,
    *mut c_uchar,
) -> c_int;

type Kdf = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    *const c_uchar,
    c_int,
    *const c_uchar,
    c_int,
    c_int,
    c_int,
    *mut c_uchar,
) -> c_int;

type Cipher = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    *const c_uchar,
    c_int,
    *const c_uchar,
    *const c_uchar,
    c_int,
    *mut c_uchar,
) -> c_int;

/// What one connection's calls have in common.
struct Context {
    /// The context of SQLCipher's own provider.
    inner: *mut c_void,
    /// Whose pages are kept; `None` for a connection that uses no cache.
    owner: Option<Owner>,
    last: Last,
    /// The plaintext of the page that is being written.
    written: Option<Box<Zeroizing<[u8; CONTENT]>>>,
}

/// What the call before this one was, of those that belong together. Places are compared and never
/// read from.
enum Last {
    Other,
    /// `hmac` found this at `input`. If the next call decrypts there, the MAC was that of the page.
    Found {
        input: usize,
        page: Page,
        found: Found,
    },
    /// `hmac` computed this at `input`, likewise.
    Computed {
        input: usize,
        page: Page,
        mac: Mac,
    },
    /// `cipher` encrypted the content of `written` to `output`.
    Encrypted {
        output: usize,
        length: usize,
    },
}

/// SQLCipher's own provider.
static OWN: OnceLock<Functions> = OnceLock::new();

thread_local! {
    /// Whose connection is being given its key.
    static OPENING: RefCell<Option<Owner>> = const { RefCell::new(None) };
}

/// Does `give_key`, which gives a connection its key: from then on it reads and writes through the
/// pages of `owner`.
pub(in crate::sqlcipher) fn opened_for<T>(
    owner: Option<&Owner>,
    give_key: impl FnOnce() -> T,
) -> T {
    OPENING.set(owner.cloned());
    let given = give_key();
    drop(OPENING.take());
    given
}

/// Puts the cache in front of SQLCipher's own provider. The library is set up already.
pub(super) fn register() -> bool {
    // SAFETY: it has no preconditions; the library keeps its provider until the process ends.
    let Some(own) = (unsafe { sqlcipher_get_provider().as_ref() }) else {
        return false;
    };
    let own = OWN.get_or_init(|| own.functions);
    if own.hmac.is_none() || own.cipher.is_none() || own.ctx_init.is_none() {
        return false;
    }
    // At the end of the process the library wipes and frees each provider with `sqlcipher_free`: it
    // must be its memory. SAFETY: the library is set up.
    let provider: *mut Provider = unsafe { sqlcipher_malloc(size_of::<Provider>() as u64) }.cast();
    if provider.is_null() || !provider.is_aligned() {
        return false;
    }
    let functions = Functions {
        init: None,
        shutdown: None,
        get_provider_name: Some(get_provider_name),
        add_random: Some(add_random),
        random: Some(random),
        hmac: Some(hmac),
        kdf: Some(kdf),
        cipher: Some(cipher),
        get_cipher: Some(get_cipher),
        get_key_sz: Some(get_key_sz),
        get_iv_sz: Some(get_iv_sz),
        get_block_sz: Some(get_block_sz),
        get_hmac_sz: Some(get_hmac_sz),
        ctx_init: Some(ctx_init),
        ctx_free: Some(ctx_free),
        fips_status: Some(fips_status),
        get_provider_version: Some(get_provider_version),
    };
    let next = ptr::null_mut();
    // SAFETY: the memory is this function's, long enough and aligned; the library owns it from the
    // registration on.
    let code = unsafe {
        provider.write(Provider { functions, next });
        sqlcipher_register_provider(provider)
    };
    code == SQLITE_OK
}

/// Functions that are SQLCipher's own, with its own context.
macro_rules! delegated {
    ($($name:ident($($argument:ident: $type:ty),*) -> $out:ty, else $failed:expr;)*) => {$(
        unsafe extern "C" fn $name(context: *mut c_void $(, $argument: $type)*) -> $out {
            let Some(own) = OWN.get().and_then(|own| own.$name) else {
                return $failed;
            };
            // SAFETY: the arguments are the library's, and meant for this function.
            unsafe { own(inner(context) $(, $argument)*) }
        }
    )*};
}

delegated! {
    get_provider_name() -> *const c_char, else ptr::null();
    add_random(bytes: *const c_void, length: c_int) -> c_int, else SQLITE_ERROR;
    random(out: *mut c_void, length: c_int) -> c_int, else SQLITE_ERROR;
    kdf(
        algorithm: c_int, password: *const c_uchar, password_length: c_int, salt: *const c_uchar, salt_length: c_int,
        rounds: c_int, length: c_int, out: *mut c_uchar
    ) -> c_int, else SQLITE_ERROR;
    get_cipher() -> *const c_char, else ptr::null();
    get_key_sz() -> c_int, else 0;
    get_iv_sz() -> c_int, else 0;
    get_block_sz() -> c_int, else 0;
    get_hmac_sz(algorithm: c_int) -> c_int, else 0;
    fips_status() -> c_int, else 0;
    get_provider_version() -> *const c_char, else ptr::null();
}

/// The context of SQLCipher's own provider.
///
/// # Safety
///
/// `context` is null, or was made by [`ctx_init`] and not freed.
unsafe fn inner(context: *mut c_void) -> *mut c_void {
    // SAFETY: as the caller promises.
    let context = unsafe { context.cast::<Context>().as_ref() };
    context.map_or(ptr::null_mut(), |context| context.inner)
}

unsafe extern "C" fn ctx_init(place: *mut *mut c_void) -> c_int {
    let Some(own) = OWN.get().and_then(|own| own.ctx_init) else {
        return SQLITE_ERROR;
    };
    let owner = OPENING.take().filter(|_| !is_lost());
    let mut inner = ptr::null_mut();
    // SAFETY: there is a place for its context.
    let code = unsafe { own(&raw mut inner) };
    if code == SQLITE_OK {
        let context = Box::new(Context {
            inner,
            owner,
            last: Last::Other,
            written: None,
        });
        // SAFETY: the library gives a place for the context.
        unsafe { place.write(Box::into_raw(context).cast()) };
    }
    code
}

/// Whether a test has the library do something else than was read in its source.
fn is_lost() -> bool {
    ::fail::fail_point!("page_cache::lost", |_| true);
    false
}

unsafe extern "C" fn ctx_free(place: *mut *mut c_void) -> c_int {
    // SAFETY: the library gives the place of the context, which it does not use any more.
    let context = unsafe { place.replace(ptr::null_mut()) }.cast::<Context>();
    let mut inner = ptr::null_mut();
    if !context.is_null() {
        // SAFETY: it was made by `ctx_init`.
        inner = unsafe { Box::from_raw(context) }.inner;
    }
    match OWN.get().and_then(|own| own.ctx_free) {
        // SAFETY: it is the context that this provider made.
        Some(own) => unsafe { own(&raw mut inner) },
        None => SQLITE_OK,
    }
}

unsafe extern "C" fn hmac(
    context: *mut c_void,
    algorithm: c_int,
    key: *const c_uchar,
    key_length: c_int,
    input: *const c_uchar,
    length: c_int,
    number: *const c_uchar,
    number_length: c_int,
    out: *mut c_uchar,
) -> c_int {
    let Some(own) = OWN.get().and_then(|own| own.hmac) else {
        return SQLITE_ERROR;
    };
    // SAFETY: it was made by `ctx_init`.
    let inner = unsafe { inner(context) };
    let compute = || {
        // SAFETY: the arguments are the library's, and meant for this function.
        unsafe {
            own(
                inner,
                algorithm,
                key,
                key_length,
                input,
                length,
                number,
                number_length,
                out,
            )
        }
    };
    // SAFETY: it was made by `ctx_init`, and one thread uses a connection at a time.
    let Some(context) = (unsafe { context.cast::<Context>().as_mut() }) else {
        return compute();
    };
    let last = std::mem::replace(&mut context.last, Last::Other);
    let length = usize::try_from(length).unwrap_or(0);
    let is_page = algorithm == SHA512
        && (key_length, number_length) == (KEY, NUMBER)
        && (IV + 1..=CONTENT + IV).contains(&length);
    let Some(owner) = context.owner.as_ref().filter(|_| is_page) else {
        return compute();
    };
    // SAFETY: the library gives as many bytes as it says, and writes none of them before this
    // returns.
    let (key, input, number) = unsafe {
        let key = &*key.cast::<[u8; KEY as usize]>();
        let number = *number.cast::<[u8; NUMBER as usize]>();
        (key, std::slice::from_raw_parts(input, length), number)
    };
    let Some((ciphertext, iv)) = input.split_last_chunk::<IV>() else {
        return compute();
    };
    if !owner.is_under(key) {
        return compute();
    }
    let page = Page {
        number,
        iv: *iv,
        length: ciphertext.len() as u16,
    };
    let place = input.as_ptr().addr();
    // A page that is written gets its MAC behind it.
    if out.addr() == place + length {
        let code = compute();
        let is_last = matches!(last, Last::Encrypted { output, length }
            if (output, length) == (place, ciphertext.len()));
        if let (SQLITE_OK, true, Some(written)) = (code, is_last, &context.written) {
            // SAFETY: the library gives room for a MAC, which was written just now.
            let mac = unsafe { *out.cast::<Mac>() };
            owner.insert(&page, ciphertext, &mac, &written[..ciphertext.len()]);
        }
        return code;
    }
    if let Some((found, mac)) = owner.find(&page, ciphertext) {
        // SAFETY: the library gives room for a MAC.
        unsafe { out.cast::<Mac>().write(mac) };
        context.last = Last::Found {
            input: place,
            page,
            found,
        };
        return SQLITE_OK;
    }
    let code = compute();
    if code == SQLITE_OK {
        context.last = Last::Computed {
            input: place,
            page,
            // SAFETY: the library gives room for a MAC, which was written just now.
            mac: unsafe { *out.cast::<Mac>() },
        };
    }
    code
}

unsafe extern "C" fn cipher(
    context: *mut c_void,
    mode: c_int,
    key: *const c_uchar,
    key_length: c_int,
    iv: *const c_uchar,
    input: *const c_uchar,
    length: c_int,
    out: *mut c_uchar,
) -> c_int {
    let Some(own) = OWN.get().and_then(|own| own.cipher) else {
        return SQLITE_ERROR;
    };
    // SAFETY: it was made by `ctx_init`.
    let inner = unsafe { inner(context) };
    let compute = || {
        // SAFETY: the arguments are the library's, and meant for this function.
        unsafe { own(inner, mode, key, key_length, iv, input, length, out) }
    };
    // SAFETY: it was made by `ctx_init`, and one thread uses a connection at a time.
    let Some(context) = (unsafe { context.cast::<Context>().as_mut() }) else {
        return compute();
    };
    let last = std::mem::replace(&mut context.last, Last::Other);
    let length = usize::try_from(length).unwrap_or(0);
    let Some(owner) = context
        .owner
        .as_ref()
        .filter(|_| (1..=CONTENT).contains(&length))
    else {
        return compute();
    };
    let is_same = |place: usize, page: &Page| {
        // SAFETY: the library gives an IV.
        let iv = unsafe { *iv.cast::<[u8; IV]>() };
        place == input.addr() && usize::from(page.length) == length && page.iv == iv
    };
    match last {
        Last::Found {
            input: place,
            page,
            found,
        } if mode == DECRYPT && is_same(place, &page) => {
            // SAFETY: the library gives room for as many bytes as it says; they are initialised,
            // and nobody else has them.
            let out = unsafe { std::slice::from_raw_parts_mut(out, length) };
            if owner.copy(found, &page.iv, out) {
                return SQLITE_OK;
            }
            compute()
        }
        Last::Computed {
            input: place,
            page,
            mac,
        } if mode == DECRYPT && is_same(place, &page) => {
            let code = compute();
            if code == SQLITE_OK {
                // SAFETY: the library gives as many bytes as it says, and as many were written.
                let (ciphertext, plaintext) = unsafe {
                    let ciphertext = std::slice::from_raw_parts(input, length);
                    (ciphertext, std::slice::from_raw_parts(out, length))
                };
                owner.insert(&page, ciphertext, &mac, plaintext);
            }
            code
        }
        _ if mode == ENCRYPT => {
            let code = compute();
            if code == SQLITE_OK {
                // SAFETY: the library gives as many bytes as it says.
                let plaintext = unsafe { std::slice::from_raw_parts(input, length) };
                let written = context
                    .written
                    .get_or_insert_with(|| Box::new(Zeroizing::new([0; CONTENT])));
                written[..length].copy_from_slice(plaintext);
                context.last = Last::Encrypted {
                    output: out.addr(),
                    length,
                };
            }
            code
        }
        _ => compute(),
    }
}

/// `SQLCIPHER_HMAC_SHA512`.
const SHA512: c_int = 2;
/// `SQLCIPHER_DECRYPT`, `SQLCIPHER_ENCRYPT`.
const DECRYPT: c_int = 0;
const ENCRYPT: c_int = 1;
const KEY: c_int = 32;
const NUMBER: c_int = 4;
const _: () = assert!(MAC == size_of::<Mac>());

#[cfg(test)]
mod tests;
