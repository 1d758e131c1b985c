//! Carrying out what a command file was told.

use sheep_client::{GatewayAddress, VdiSelector};
use sheep_proto::limits::DEFAULT_PORT;
use sheep_proto::{SnapshotTag, VdiName};

use super::{CreateLine, create, invalid, line, size, switch, two_words};
use crate::error::FsError;
use crate::node::{Command, Setting};
use crate::resolve::{resolve, resolve_snapshot};
use crate::tree::Tree;
use crate::volume::{Volume, VolumeOptions};

/// Bytes of a refused line shown in its error.
const SHOWN: usize = 80;

impl Tree {
    /// Carries out one line written to a command file.
    pub(crate) async fn command(&self, command: Command, data: &[u8]) -> Result<(), FsError> {
        let outcome = match line(data) {
            Ok(line) => self.run_command(command, line).await,
            Err(error) => Err(error),
        };
        outcome.map_err(|error| refused(command.path(), data, error))
    }

    async fn run_command(&self, command: Command, line: &[u8]) -> Result<(), FsError> {
        if self.config().read_only && !matches!(command, Command::Mount | Command::Unmount) {
            return Err(FsError::ReadOnly);
        }
        let client = self.client();
        match command {
            Command::Mount => self.attach(line).await,
            Command::Unmount => self.detach(line).await,
            Command::Create => self.create(&create(line)?).await,
            Command::Snapshot => {
                let (name, tag) = two_words(line, "NAME TAG")?;
                let (name, tag) = (VdiName::new(name)?, SnapshotTag::new(tag)?);
                self.settle(&VdiSelector::working(name.clone())).await;
                client
                    .vdi(&VdiSelector::working(name.clone()))
                    .snapshot(&tag)
                    .await?;
                Ok(())
            }
            Command::Clone => {
                let (base, name) = two_words(line, "NAME@TAG NEWNAME")?;
                let base = self.snapshot_selector(base).await?;
                client.vdi(&base).clone_to(&VdiName::new(name)?).await?;
                Ok(())
            }
            Command::Rollback => {
                let snapshot = self.snapshot_selector(line).await?;
                let roll_back = async { Ok(client.vdi(&snapshot).rollback().await.map(drop)?) };
                self.replace(&VdiSelector::working(snapshot.name.clone()), roll_back)
                    .await
            }
            Command::Resize => {
                let (name, bytes) = two_words(line, "NAME SIZE")?;
                let name = VdiName::new(name)?;
                client
                    .vdi(&VdiSelector::working(name.clone()))
                    .resize(size(bytes)?)
                    .await?;
                self.refresh(&VdiSelector::working(name)).await
            }
            Command::Unlock => {
                let selector = resolve(client, line).await?;
                // The lock of an attached volume goes back when it is detached.
                self.check_not_attached(&selector)?;
                let vid = client.vdi(&selector).lookup().await?;
                Ok(client.inode(vid).unlock().await?)
            }
            Command::Delete => {
                let selector = resolve(client, line).await?;
                self.replace(&selector, async {
                    Ok(client.vdi(&selector).delete().await?)
                })
                .await
            }
        }
    }

    /// Changes a setting to what was written.
    pub(crate) async fn change_setting(
        &self,
        setting: Setting,
        data: &[u8],
    ) -> Result<(), FsError> {
        let outcome = match line(data) {
            Ok(line) => self.apply_setting(setting, line).await,
            Err(error) => Err(error),
        };
        outcome.map_err(|error| refused(setting.path(), data, error))
    }

    async fn apply_setting(&self, setting: Setting, line: &[u8]) -> Result<(), FsError> {
        match setting {
            Setting::PageCache => self.settings().page_cache = switch(line)?,
            Setting::ObjectCache => self.settings().object_cache = switch(line)?,
            Setting::SheepInfo => {
                let text = std::str::from_utf8(line).map_err(|_| invalid("not an address"))?;
                let address = GatewayAddress::parse(text, DEFAULT_PORT)
                    .map_err(|error| invalid(error.to_string()))?;
                self.client().switch_gateway(address).await?;
                self.forget_sheep().await;
            }
        }
        Ok(())
    }

    async fn snapshot_selector(&self, text: &[u8]) -> Result<VdiSelector, FsError> {
        let snapshot = resolve_snapshot(self.client(), text).await?;
        snapshot.ok_or_else(|| invalid(format!("'{}': expected NAME@TAG", text.escape_ascii())))
    }

    async fn create(&self, line: &CreateLine) -> Result<(), FsError> {
        if line.new.hypervolume && line.preallocate {
            return Err(invalid("a hypervolume is not preallocated"));
        }
        // Nobody attaches it, and writes, before all its objects are made.
        let _attach_lock = self.lock_attached().await;
        let client = self.client();
        client.cluster().create_vdi(&line.new).await?;
        if !line.preallocate {
            return Ok(());
        }
        let selector = VdiSelector::working(line.new.name.clone());
        let options = VolumeOptions {
            read_only: false,
            lock: self.lock_policy().is_locking(client).await?,
        };
        let volume = Volume::open(client.clone(), selector, options).await?;
        let allocated = volume.allocate_all().await;
        let closed = volume.close().await;
        Ok(allocated.and(closed)?)
    }
}

fn refused(file: &'static str, data: &[u8], source: FsError) -> FsError {
    let line = data.strip_suffix(b"\n").unwrap_or(data);
    let line = line[..line.len().min(SHOWN)].escape_ascii().to_string();
    FsError::Command {
        file,
        line,
        source: Box::new(source),
    }
}
