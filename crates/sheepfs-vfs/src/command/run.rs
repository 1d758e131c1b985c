//! Runs the lines written to command files.

use std::sync::Arc;

use sheep_client::{Client, VdiSelector};
use sheep_proto::{SnapshotTag, VdiName};

use super::{CreateLine, create, invalid, line, refused, size, split_two_words};
use crate::error::FsError;
use crate::lock_policy::LockPolicy;
use crate::node::Command;
use crate::resolve::{resolve, resolve_snapshot};
use crate::tree::Attachments;
use crate::volume::{Volume, VolumeOptions};
pub(crate) struct CommandRunner {
    client: Client,
    /// Commands that change the cluster are refused.
    read_only: bool,
    attachments: Arc<Attachments>,
    lock_policy: Arc<LockPolicy>,
}

impl CommandRunner {
    pub(crate) fn new(
        client: Client,
        read_only: bool,
        attachments: Arc<Attachments>,
        lock_policy: Arc<LockPolicy>,
    ) -> Self {
        Self {
            client,
            read_only,
            attachments,
            lock_policy,
        }
    }

    /// Runs one line written to a command file.
    ///
    /// # Errors
    /// `Command`.
    pub(crate) async fn run(&self, command: Command, data: &[u8]) -> Result<(), FsError> {
        let outcome = match line(data) {
            Ok(line) => self.run_line(command, line).await,
            Err(error) => Err(error),
        };
        outcome.map_err(|error| refused(command.path(), data, error))
    }

    async fn run_line(&self, command: Command, line: &[u8]) -> Result<(), FsError> {
        if self.read_only && !matches!(command, Command::Mount | Command::Unmount) {
            return Err(FsError::ReadOnly);
        }
        let client = &self.client;
        // Each command parses its line, then runs it; those that replace or delete a VDI
        // first detach its volumes.
        match command {
            Command::Mount => self.attachments.attach(line).await,
            Command::Unmount => self.attachments.detach(line).await,
            Command::Create => self.create(&create(line)?).await,
            Command::Snapshot => {
                let (name, tag) = split_two_words(line, "NAME TAG")?;
                let head = VdiSelector::working(VdiName::new(name)?);
                let tag = SnapshotTag::new(tag)?;
                // The snapshot shall have all buffered writes.
                self.attachments
                    .with_caches_flushed(&head, async {
                        Ok(client.vdi(&head).snapshot(&tag).await.map(drop)?)
                    })
                    .await
            }
            Command::Clone => {
                let (base, name) = split_two_words(line, "NAME@TAG NEWNAME")?;
                let base = self.snapshot_selector(base).await?;
                let head = VdiSelector::working(base.name.clone());
                self.attachments.flush_caches(&head).await?;
                client.vdi(&base).clone_to(&VdiName::new(name)?).await?;
                Ok(())
            }
            Command::Rollback => {
                let snapshot = self.snapshot_selector(line).await?;
                let roll_back = async { Ok(client.vdi(&snapshot).rollback().await.map(drop)?) };
                self.attachments
                    .with_volumes_detached(&VdiSelector::working(snapshot.name.clone()), roll_back)
                    .await
            }
            Command::Resize => {
                let (name, bytes) = split_two_words(line, "NAME SIZE")?;
                let head = VdiSelector::working(VdiName::new(name)?);
                // Attached volumes must not show the old size.
                client.vdi(&head).resize(size(bytes)?).await?;
                self.attachments.revalidate(&head).await
            }
            Command::Unlock => {
                let selector = resolve(client, line).await?;
                // An attached volume releases its own lock when it is detached.
                self.attachments.check_not_attached(&selector)?;
                let vid = client.vdi(&selector).lookup().await?;
                Ok(client.inode(vid).unlock().await?)
            }
            Command::Delete => {
                let selector = resolve(client, line).await?;
                self.attachments
                    .with_volumes_detached(&selector, async {
                        Ok(client.vdi(&selector).delete().await?)
                    })
                    .await
            }
        }
    }

    async fn snapshot_selector(&self, text: &[u8]) -> Result<VdiSelector, FsError> {
        let snapshot = resolve_snapshot(&self.client, text).await?;
        snapshot.ok_or_else(|| invalid(format!("'{}': expected NAME@TAG", text.escape_ascii())))
    }

    async fn create(&self, line: &CreateLine) -> Result<(), FsError> {
        if line.new.hypervolume && line.preallocate {
            return Err(invalid("a hypervolume is not preallocated"));
        }
        // Excludes an attach, and with it writes, until all objects are allocated.
        let _attach_lock = self.attachments.lock().await;
        let client = &self.client;
        client.cluster().create_vdi(&line.new).await?;
        if !line.preallocate {
            return Ok(());
        }
        let selector = VdiSelector::working(line.new.name.clone());
        let options =
            VolumeOptions::default().with_lock(self.lock_policy.is_locking(client).await?);
        let volume = Volume::open(client.clone(), selector, options).await?;
        let allocated = volume.allocate_all().await;
        let closed = volume.close().await;
        Ok(allocated.and(closed)?)
    }
}
