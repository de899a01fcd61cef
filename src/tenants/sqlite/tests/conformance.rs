//! The suite that every backend runs, on SQLite.

use super::*;

conformance!(House);

/// The same place without encryption.
struct PlainHouse(House);

impl Fixture for PlainHouse {
    type Backend = SqliteFiles;

    fn empty() -> Self {
        Self(House::new(Envelope::plaintext()))
    }

    async fn open(&self) -> SqliteTenants {
        self.0.open().await
    }

    fn due(&self) -> &Due {
        self.0.due()
    }
}

#[tokio::test]
async fn documents_survive_closing_without_encryption() {
    crate::tenants::conformance::documents::documents_survive_closing::<PlainHouse>().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_without_encryption_has_all_that_there_is() {
    crate::tenants::conformance::moving::a_copy_has_all_that_there_is_however_much::<PlainHouse>()
        .await;
    crate::tenants::conformance::moving::a_copy_of_what_is_written_meanwhile_is_none::<PlainHouse>(
    )
    .await;
}
