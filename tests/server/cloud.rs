//! A machine whose keys lie in AWS KMS: moto, over the wire, behind a proxy that fails when told
//! to.

use std::process::Command;

use nimbus_test_support::{Ended, Fault, FaultProxy, Machine, Moto, Server};

use super::machine;

pub(super) struct Cloud {
    pub(super) machine: Machine,
    pub(super) proxy: FaultProxy,
    pub(super) key: String,
    pub(super) moto: Moto,
}

impl Cloud {
    pub(super) fn new() -> Self {
        let moto = Moto::start();
        Self {
            machine: machine(),
            proxy: FaultProxy::in_front_of(moto.url()),
            key: moto.create_key(),
            moto,
        }
    }

    /// `nimbus start` with this key.
    pub(super) fn command(&self) -> Command {
        self.with_settings(&["start", "--port", "0"])
    }

    /// Any command, with this key in its environment.
    pub(super) fn with_settings(&self, arguments: &[&str]) -> Command {
        let mut command = self.machine.nimbus(arguments);
        command
            .env("NIMBUS_ENCRYPTION_KEY_PROVIDER", "aws-kms")
            .env("NIMBUS_ENCRYPTION_AWS_KMS_KEY_ID", &self.key)
            .env("NIMBUS_ENCRYPTION_AWS_ENDPOINT_URL", self.proxy.url())
            .env("NIMBUS_ENCRYPTION_AWS_REGION", "us-east-1")
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test");
        command
    }

    pub(super) fn start(&self) -> Server {
        self.start_with(&[])
    }

    pub(super) fn start_with(&self, arguments: &[&str]) -> Server {
        let mut command = self.command();
        command.args(arguments);
        self.machine.start_command(command)
    }

    pub(super) fn start_that_ends(&self) -> Ended {
        self.machine.run_to_end(self.command())
    }

    /// Disables a key, as far as Nimbus can tell: moto knows no disabled keys.
    pub(super) fn disable(&self, key: &str) {
        let disabled = || Fault::error(400, "DisabledException", "the key is disabled");
        for action in ["Decrypt", "GenerateDataKey", "Encrypt"] {
            self.proxy.inject_for(action, key, disabled());
        }
    }
}
