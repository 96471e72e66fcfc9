//! The volume that carries the warden into cells: named by the binary's hash, filled once through the engine's archive
//! call, mounted read-only. No host path is involved, so a remote engine or an agent in a container works alike.

use super::create::volume_mount;
use super::engine::{Engine, EngineError};
use crate::executor::warden::{WARDEN, warden_build};
use crate::job::OwnerId;
use bollard::models::{ContainerCreateBody, HostConfig};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::Mutex;

/// Where the volume is mounted in a cell.
pub(super) const WARDEN_DIR: &str = "/.jobcell";
/// What the volume's name begins with; the warden's build follows.
pub(super) const WARDEN_VOLUME: &str = "jobcell-warden-";
/// Its label, with the warden's build.
pub(super) const WARDEN_LABEL: &str = "jobcell.warden";
/// The warden in a cell.
pub(super) const WARDEN_PATH: &str = "/.jobcell/warden";

/// What says that a volume has a warden in it, and which.
pub(super) fn labels() -> HashMap<String, String> {
    HashMap::from([(WARDEN_LABEL.to_owned(), warden_build().to_owned())])
}

/// Makes sure of the volume, once per engine and process.
pub(super) struct WardenVolume {
    engine: Engine,
    owner: OwnerId,
    name: String,
    sure: AtomicBool,
    /// One filling at a time.
    filling: Mutex<()>,
}

impl WardenVolume {
    pub(super) fn new(engine: Engine, owner: OwnerId) -> Self {
        let name = format!("{WARDEN_VOLUME}{}", warden_build());
        Self { engine, owner, name, sure: AtomicBool::new(false), filling: Mutex::new(()) }
    }

    /// The volume was seen to be missing after all.
    pub(super) fn forget(&self) {
        self.sure.store(false, Ordering::Relaxed);
    }

    /// The volume's name, after it has been made and filled. `image` is any image the engine has: it gives the root file
    /// system of a container that is never started and only opens the door to the volume.
    pub(super) async fn ensure(&self, image: &str) -> Result<String, EngineError> {
        if !self.sure.load(Ordering::Relaxed) {
            let _one = self.filling.lock().await;
            if !self.sure.load(Ordering::Relaxed) {
                self.fill(image).await?;
                self.sure.store(true, Ordering::Relaxed);
            }
        }
        Ok(self.name.clone())
    }

    /// Whether this is the container through which the volume is being filled now.
    pub(super) fn is_filled_through(&self, container: &str) -> bool {
        container == self.door() && self.filling.try_lock().is_err()
    }

    fn door(&self) -> String {
        format!("jobcell-{}-fill-{}", self.owner, std::process::id())
    }

    async fn fill(&self, image: &str) -> Result<(), EngineError> {
        // The volume is made with the first container that mounts it: a call less that an engine has to allow.
        let door = self.door();
        let body = ContainerCreateBody {
            image: Some(image.to_owned()),
            entrypoint: Some(vec![WARDEN_PATH.to_owned()]),
            labels: Some(HashMap::from([("jobcell.owner".to_owned(), self.owner.to_string())])),
            host_config: Some(HostConfig {
                mounts: Some(vec![volume_mount(&self.name, false)]),
                network_mode: Some("none".to_owned()),
                ..HostConfig::default()
            }),
            ..ContainerCreateBody::default()
        };
        self.engine.remove(&door).await?;
        self.engine.create(&door, body).await?;
        let filled = self.fill_through(&door).await;
        let removed = self.engine.remove(&door).await;
        filled.and(removed)
    }

    async fn fill_through(&self, door: &str) -> Result<(), EngineError> {
        // The archive call unpacks under a temporary name only in newer engines, so a torn upload would be a short file:
        // the size tells, and the upload is done again.
        if self.engine.file_size(door, WARDEN_PATH).await? != Some(WARDEN.len() as u64) {
            self.engine.upload(door, WARDEN_DIR, archive()).await?;
        }
        Ok(())
    }
}

/// A tar archive with the warden as its only file: owned by root, executable by all, writable by none.
fn archive() -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.set_size(WARDEN.len() as u64);
    header.set_mode(0o555);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    let mut builder = tar::Builder::new(Vec::with_capacity(WARDEN.len() + 4096));
    builder.append_data(&mut header, "warden", WARDEN).expect("writing to memory does not fail");
    builder.into_inner().expect("writing to memory does not fail")
}
