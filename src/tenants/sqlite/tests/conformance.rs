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
