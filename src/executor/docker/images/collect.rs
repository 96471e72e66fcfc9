//! Removal of images that nothing uses, when there is too little room, and the list of them for people.

use super::ledger::Pulling;
use super::plan::{self, Known};
use super::{Images, Inner, Judged};
use crate::executor::docker::engine::{Engine, EngineError};
use crate::job::UnixMillis;
use crate::supervise;
use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks at how much room there is.
const LOOKS: Duration = Duration::from_secs(60);
/// A file system that does not answer so long says nothing.
const FREE_LIMIT: Duration = Duration::from_secs(5);

impl Images {
    /// Looks after the room, every minute and after each pull, until `stop`.
    pub(in crate::executor::docker) fn look_after(&self, stop: CancellationToken) {
        let images = self.clone();
        supervise::spawn("images", async move {
            loop {
                if let Err(error) = images.0.needed().await {
                    tracing::debug!(error = %error.short(), "images cannot be looked at");
                }
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = images.0.came.notified() => {}
                    () = tokio::time::sleep(LOOKS) => {}
                }
            }
        });
    }

    /// Every image with what is known of it, and what would become of it now; those that would go first. `all`: as if there were no room
    /// at all. Errors: the engine does not answer.
    pub async fn list(&self, all: bool) -> Result<Vec<Judged>, EngineError> {
        Ok(plan::judge(&self.0.known().await?, &self.0.settings.bounds, all))
    }

    /// Removes what is not needed; `all`: everything of ours that nothing uses. Gives what went, and what the engine did not let go.
    /// Errors: the engine does not answer.
    pub async fn collect(&self, all: bool) -> Result<Vec<(Judged, Result<(), String>)>, EngineError> {
        self.0.collect(all).await
    }
}

impl Inner {
    /// Before a pull: room for it.
    pub(super) async fn make_room(&self) {
        let low = self.settings.bounds.free_low.as_u64();
        if low > 0
            && self.free().await.is_some_and(|free| free < low)
            && let Err(error) = self.collect(false).await
        {
            tracing::warn!(error = %error.short(), "there is little room for images, and none can be removed");
        }
    }

    /// Removes where there is a need, and settles pulls that nobody has seen end.
    async fn needed(&self) -> Result<(), EngineError> {
        let bounds = &self.settings.bounds;
        let low = bounds.free_low.as_u64();
        let tight = low > 0 && self.free().await.is_some_and(|free| free < low);
        if tight || bounds.size_max.as_u64() > 0 {
            return self.collect(false).await.map(drop);
        }
        self.settle().await
    }

    /// What pulls have brought that ended when nobody saw it: their process was killed, or nobody waited any more.
    async fn settle(&self) -> Result<(), EngineError> {
        let open: Vec<(String, Pulling)> = self.ledger.read().await.pulling.into_iter().collect();
        for (name, Pulling { before, .. }) in open.into_iter().filter(|(name, _)| !self.flights.has(name)) {
            let found = self.engine.find_image(&name).await?;
            self.ledger
                .change(true, move |book| match found {
                    Some(found) => book.pulled(&name, &found.id, before.as_deref(), UnixMillis::now()),
                    None => drop(book.pulling.remove(&name)),
                })
                .await;
        }
        Ok(())
    }

    async fn collect(&self, all: bool) -> Result<Vec<(Judged, Result<(), String>)>, EngineError> {
        let _one = self.collecting.lock().await;
        self.settle().await?;
        let (mut tried, mut gone) = (HashSet::new(), Vec::new());
        // After each one everything is looked at anew: layers are shared, so what one gives back is only known then.
        loop {
            let known = self.known().await?;
            let judged = plan::judge(&known, &self.settings.bounds, all);
            let Some(next) = judged.into_iter().find(|one| one.goes && tried.insert(one.id.clone())) else {
                self.forget(&known).await;
                return Ok(gone);
            };
            // A job may have come for it since.
            let Some(_removal) = self.holds.remove(&next.id) else { continue };
            let removed = self.remove(&next).await;
            match &removed {
                Ok(()) => tracing::info!(image = ?next.names, id = next.id, why = next.why, "image removed"),
                Err(reason) => tracing::info!(image = ?next.names, id = next.id, reason, "the engine keeps an image"),
            }
            gone.push((next, removed));
        }
    }

    /// Without force: the engine refuses when a container has it.
    async fn remove(&self, image: &Judged) -> Result<(), String> {
        for name in &image.names {
            // It may be another image's by now.
            let found = self.engine.find_image(name).await.map_err(|error| error.short())?;
            if found.is_some_and(|found| found.id == image.id) {
                self.engine.remove_image(name).await.map_err(|error| error.short())?;
            }
        }
        self.engine.remove_image(&image.id).await.map_err(|error| error.short())?;
        let id = image.id.clone();
        self.ledger.change(true, move |book| book.removed(&id)).await;
        Ok(())
    }

    /// What somebody else has removed need not be remembered.
    async fn forget(&self, known: &Known) {
        let there: HashSet<String> = known.images.iter().map(|image| image.id.clone()).collect();
        if known.book.images.keys().any(|id| !there.contains(id)) {
            let before: HashSet<String> = known.book.images.keys().cloned().collect();
            // Not what came since the look.
            self.ledger
                .change(false, move |book| book.images.retain(|id, _| there.contains(id) || !before.contains(id)))
                .await;
        }
    }

    async fn known(&self) -> Result<Known, EngineError> {
        let images = self.engine.list_images().await?;
        let in_use = self.engine.images_in_use().await?;
        let (held, book, free) = (self.holds.held(), self.ledger.read().await, self.free().await);
        Ok(Known { images, in_use, held, book, free })
    }

    /// Bytes free where images are; `None` when that cannot be seen from here.
    async fn free(&self) -> Option<u64> {
        let root = self.root.get_or_try_init(|| root(&self.engine)).await.ok()?.clone()?;
        let look = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&root));
        let found = tokio::time::timeout(FREE_LIMIT, look).await.ok()?.ok()?.ok()?;
        Some(found.f_bavail.saturating_mul(found.f_frsize))
    }
}

/// Where an engine of this host keeps images. Errors: it does not answer.
async fn root(engine: &Engine) -> Result<Option<PathBuf>, EngineError> {
    if !engine.is_local() {
        return Ok(None);
    }
    let (_, info) = engine.about().await?;
    // An engine beyond a mounted socket has a folder of that name elsewhere.
    Ok(info.docker_root_dir.map(PathBuf::from).filter(|root| root.join("image").exists()))
}
