//! The table against the source of the library.

use std::mem::offset_of;

/// What the vendored source says of the table.
const DECLARED: &str = "
  int (*init)(void);
  void (*shutdown)(void);
  const char* (*get_provider_name)(void *ctx);
  int (*add_random)(void *ctx, const void *buffer, int length);
  int (*random)(void *ctx, void *buffer, int length);
  int (*hmac)(void *ctx, int algorithm,
              const unsigned char *hmac_key, int key_sz,
              const unsigned char *in, int in_sz,
              const unsigned char *in2, int in2_sz,
              unsigned char *out);
  int (*kdf)(void *ctx, int algorithm,
              const unsigned char *pass, int pass_sz,
              const unsigned char* salt, int salt_sz,
              int workfactor,
              int key_sz, unsigned char *key);
  int (*cipher)(void *ctx, int mode,
              const unsigned char *key, int key_sz,
              const unsigned char *iv,
              const unsigned char *in, int in_sz,
              unsigned char *out);
  const char* (*get_cipher)(void *ctx);
  int (*get_key_sz)(void *ctx);
  int (*get_iv_sz)(void *ctx);
  int (*get_block_sz)(void *ctx);
  int (*get_hmac_sz)(void *ctx, int algorithm);
  int (*ctx_init)(void **ctx);
  int (*ctx_free)(void **ctx);
  int (*fips_status)(void *ctx);
  const char* (*get_provider_version)(void *ctx);
  sqlcipher_provider *next;
";

use super::*;

#[test]
fn the_table_is_that_of_the_source_that_is_built() {
    let path = sqlcipher_src::source_dir().join(sqlcipher_src::SOURCE_FILE);
    let source = String::from_utf8_lossy(&std::fs::read(path).unwrap()).into_owned();
    let (_, declared) = source.split_once("struct sqlcipher_provider {").unwrap();
    let (declared, _) = declared.split_once("};").unwrap();
    assert_eq!(declared, DECLARED);
    assert_eq!(sqlcipher_src::SQLCIPHER_VERSION, super::super::VERSION);
    for declared in [
        "int sqlcipher_register_provider(sqlcipher_provider *);",
        "sqlcipher_provider* sqlcipher_get_provider(void);",
        "void* sqlcipher_malloc(sqlite_uint64);",
        "sqlcipher_free(provider, sizeof(sqlcipher_provider));",
        "#define SQLCIPHER_DECRYPT 0",
        "#define SQLCIPHER_ENCRYPT 1",
        "#define SQLCIPHER_HMAC_SHA512 2",
    ] {
        assert!(source.contains(declared), "{declared}");
    }
    // Eighteen pointers.
    assert_eq!(DECLARED.matches(';').count(), 18);
    assert_eq!(size_of::<Provider>(), 18 * size_of::<usize>());
    assert_eq!(offset_of!(Functions, hmac), 5 * size_of::<usize>());
    assert_eq!(offset_of!(Functions, cipher), 7 * size_of::<usize>());
    assert_eq!(offset_of!(Provider, next), 17 * size_of::<usize>());
}
