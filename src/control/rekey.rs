//! A new data key for the control file while it is in use. Callers wait meanwhile: the file is
//! small.

use std::sync::Arc;

use nimbus_manifests::Cipher;

use super::database::Protection;
use super::{Control, ControlError, Key, Open, subject, swap_to_next_key, which_key};
use crate::envelope::{
    Envelope, EnvelopeError, Event, EventKind, EventOutcome, Intent, KeyedFile, Opened, Prepared,
    Stage,
};
use crate::runtime::blocking;

impl Control {
    /// Gives the control file a new data key. Whoever wants to read or write it meanwhile waits.
    ///
    /// # Errors
    ///
    /// [`ControlError`]; it goes on under the key it has.
    pub async fn rotate_dek(self: &Arc<Self>, envelope: &Envelope) -> Result<(), ControlError> {
        let own = subject();
        let prepare = || envelope.prepare(&self.path, &own, Cipher::Blocks1, Intent::Open);
        let mut prepared = prepare().await?;
        if let Prepared::Keyed(file) = &prepared
            && matches!(file.stage(), Stage::Rekeying { .. })
        {
            // The end of another one could not be written.
            let control = Arc::clone(self);
            let file = file.share();
            let (file, opened) = blocking(move || control.which_key_now(file)).await?;
            drop(envelope.settle(file, opened).await?);
            prepared = prepare().await?;
        }
        let Prepared::Keyed(file) = prepared else {
            let path = self.path.clone();
            return Err(EnvelopeError::EncryptionOff { path }.into());
        };
        let begun = Event::new(EventKind::Rekey, EventOutcome::Begun).of(file.manifest());
        envelope.record(begun.clone()).await?;
        let rekeyed = self.rekey(envelope, file).await;
        let event = match &rekeyed {
            Ok(file) => Event::new(EventKind::Rekey, EventOutcome::Done).of(file.manifest()),
            Err(_) => begun.ended(&rekeyed),
        };
        envelope.record(event).await?;
        rekeyed.map(drop)
    }

    async fn rekey(
        self: &Arc<Self>,
        envelope: &Envelope,
        file: KeyedFile,
    ) -> Result<KeyedFile, ControlError> {
        let file = envelope.begin_rekey(file).await?;
        let control = Arc::clone(self);
        let (file, opened, swapped) = blocking(move || control.swap(file)).await?;
        let file = envelope.settle(file, opened).await?;
        swapped?;
        // By the new wrap from now on: that is what the key provider is asked about, and the old
        // key is wiped.
        let own = subject();
        let again = envelope.prepare(&self.path, &own, Cipher::Blocks1, Intent::Open);
        if let Ok(Prepared::Keyed(again)) = again.await {
            let mut open = self.changing();
            if let Key::Had(..) = open.key {
                open.key = Key::Had(Protection::of(&again), again.lease());
            }
        }
        Ok(file)
    }

    /// Closes the database, swaps its file, and opens it again under whichever of the two keys it
    /// has then. No line of the audit log is between its writing and its head's meanwhile: a line
    /// is checked under the key that is in force when the log is next opened.
    fn swap(
        &self,
        file: KeyedFile,
    ) -> Result<(KeyedFile, Opened, Result<(), ControlError>), ControlError> {
        let mut chained = self.chaining();
        self.settle_audit_head(&mut chained)?;
        let mut open = self.changing();
        let had = open.let_go();
        let swapped = swap_to_next_key(&file, None);
        let opened = match &swapped {
            Ok(()) => Opened::Next,
            Err(_) => which_key(&file)?,
        };
        let now = file.share().under(opened)?;
        self.open_again(&mut open, had, &now);
        Ok((file, opened, swapped))
    }

    fn which_key_now(&self, file: KeyedFile) -> Result<(KeyedFile, Opened), ControlError> {
        let mut open = self.changing();
        let had = open.let_go();
        let opened = which_key(&file)?;
        self.open_again(&mut open, had, &file.share().under(opened)?);
        Ok((file, opened))
    }

    /// Under the key of `file`. Where the key was taken back before, whoever comes next asks for
    /// it. Whoever comes after a failure tries again, with the key that the file has now.
    fn open_again(&self, open: &mut Open, had: bool, file: &KeyedFile) {
        open.hold(file);
        if !had {
            open.key = Key::Withheld;
            return;
        }
        if let Err(error) = self.open_database(open) {
            tracing::warn!(%error, "the control file was not opened again; tried again by whoever needs it");
        }
    }
}

impl Open {
    /// Closes the database and forgets its key, which is not known while the file is swapped:
    /// whoever comes after a failure there asks for it. Whether there was one.
    fn let_go(&mut self) -> bool {
        self.database = None;
        let key = std::mem::replace(&mut self.key, Key::Withheld);
        matches!(key, Key::Had(..))
    }
}
