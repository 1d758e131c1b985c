//! Carrying out what a command file was told.

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use sheep_client::{ClientError, GatewayAddress, VdiSelector, WhichVersion};
use sheep_proto::limits::DEFAULT_PORT;
use sheep_proto::{ObjectIndex, Oid, ResultCode, SnapshotTag, VdiName};

use super::{CreateLine, create, invalid, line, name_and_tag, size, switch, two_words, working};
use crate::error::FsError;
use crate::node::{Command, Setting};
use crate::tree::Tree;

/// Objects made at once while a VDI is preallocated.
const PREALLOCATE_PARALLEL: usize = 16;
/// Slots published by one request while a VDI is preallocated.
const PREALLOCATE_RUN: u32 = 256;
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
            return Err(FsError::ReadOnly("this mount".to_owned()));
        }
        let client = self.client();
        match command {
            Command::Mount => self.attach(line).await,
            Command::Unmount => self.detach(line).await,
            Command::Create => self.create(&create(line)?).await,
            Command::Snapshot => {
                let (name, tag) = two_words(line, "NAME TAG")?;
                let (name, tag) = (VdiName::new(name)?, SnapshotTag::new(tag)?);
                self.settle(&working(name.clone())).await;
                client.snapshot(&name, &tag).await?;
                Ok(())
            }
            Command::Clone => {
                let (base, name) = two_words(line, "NAME@TAG NEWNAME")?;
                let base = self.snapshot_selector(base).await?;
                client.clone_vdi(&base, &VdiName::new(name)?).await?;
                Ok(())
            }
            Command::Rollback => {
                let snapshot = self.snapshot_selector(line).await?;
                let roll_back = async { Ok(client.rollback(&snapshot).await.map(drop)?) };
                self.replace(&working(snapshot.name.clone()), roll_back)
                    .await
            }
            Command::Resize => {
                let (name, bytes) = two_words(line, "NAME SIZE")?;
                let name = VdiName::new(name)?;
                client.resize(&name, size(bytes)?).await?;
                self.refresh(&working(name)).await
            }
            Command::Unlock => {
                let selector = self.resolve(line).await?;
                // The lock of an attached volume goes back when it is detached.
                self.check_not_attached(&selector)?;
                let vid = client.find(&selector).await?;
                Ok(client.release(vid).await?)
            }
            Command::Delete => {
                let selector = self.resolve(line).await?;
                self.replace(&selector, async { Ok(client.delete(&selector).await?) })
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
                self.client().move_to(address).await?;
                self.forget_locking().await;
            }
        }
        Ok(())
    }

    /// What `NAME` or `NAME@TAG` names: a VDI of exactly that name before a
    /// snapshot, a tag before a snapshot number.
    pub(crate) async fn resolve(&self, text: &[u8]) -> Result<VdiSelector, FsError> {
        let (whole, split) = name_and_tag(text)?;
        let whole = working(whole);
        let absent = match self.client().find(&whole).await {
            Ok(_) => return Ok(whole),
            Err(error) => error,
        };
        match split {
            Some((name, tag)) if absent.code() == Some(ResultCode::NoVdi) => {
                self.resolve_snapshot(name, tag).await
            }
            _ => Err(absent.into()),
        }
    }

    async fn snapshot_selector(&self, text: &[u8]) -> Result<VdiSelector, FsError> {
        match name_and_tag(text)?.1 {
            Some((name, tag)) => self.resolve_snapshot(name, tag).await,
            None => Err(invalid(format!(
                "'{}': expected NAME@TAG",
                text.escape_ascii()
            ))),
        }
    }

    async fn resolve_snapshot(
        &self,
        name: VdiName,
        tag: SnapshotTag,
    ) -> Result<VdiSelector, FsError> {
        let number = std::str::from_utf8(tag.as_bytes())
            .ok()
            .and_then(|text| text.parse().ok());
        let tagged = VdiSelector::tag(name.clone(), tag);
        match (self.client().find(&tagged).await, number) {
            (Ok(_), _) => Ok(tagged),
            (Err(error), Some(id)) if is_absent(&error) && id != 0 => {
                let numbered = VdiSelector {
                    name,
                    which: WhichVersion::SnapId(id),
                };
                self.client().find(&numbered).await?;
                Ok(numbered)
            }
            (Err(error), _) => Err(error.into()),
        }
    }

    async fn create(&self, line: &CreateLine) -> Result<(), FsError> {
        if line.new.hypervolume && line.preallocate {
            return Err(invalid("a hypervolume is not preallocated"));
        }
        // Nobody attaches it, and writes, before all its objects are made.
        let _held = self.hold_attached().await;
        let client = self.client();
        let vid = client.create_vdi(&line.new).await?;
        if !line.preallocate {
            return Ok(());
        }
        let info = client.find_info(&working(line.new.name.clone())).await?;
        let count = u32::try_from(info.object_count()).expect("bounded by a flat index");
        let mut first = 0;
        while first < count {
            let run = (count - first).min(PREALLOCATE_RUN);
            stream::iter(first..first + run)
                .map(|index| async move {
                    let oid = Oid::data(vid, ObjectIndex(index));
                    client.create_object(oid, 0, Bytes::new(), None).await
                })
                .buffer_unordered(PREALLOCATE_PARALLEL)
                .collect::<Vec<_>>()
                .await
                .into_iter()
                .collect::<Result<(), ClientError>>()?;
            let owners = vec![Some(vid); run as usize];
            client.write_slots(vid, ObjectIndex(first), &owners).await?;
            first += run;
        }
        Ok(())
    }
}

fn is_absent(error: &ClientError) -> bool {
    matches!(error.code(), Some(ResultCode::NoTag | ResultCode::NoVdi))
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
