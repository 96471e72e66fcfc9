//! The calls that are made to the engine, each with its own deadline. [`super::calls`] is the whole of what an operator's
//! socket proxy has to allow; what is called here stands there.

use super::images::{Found, Listed as ListedImage};
use crate::executor::Link;
use crate::job::ImageName;
use bollard::container::LogOutput;
use bollard::errors::Error;
use bollard::models::{ContainerCreateBody, ContainerSummaryStateEnum, NetworkCreateRequest};
use bollard::query_parameters::{
    AttachContainerOptionsBuilder, CreateContainerOptionsBuilder, CreateImageOptionsBuilder,
    KillContainerOptionsBuilder, ListContainersOptionsBuilder, ListImagesOptionsBuilder, ListNetworksOptionsBuilder,
    ListVolumesOptions, RemoveContainerOptionsBuilder, RemoveImageOptions, RemoveVolumeOptions,
    UploadToContainerOptionsBuilder,
};
use bollard::{API_DEFAULT_VERSION, Docker};
use futures_util::{Stream, StreamExt};
use std::collections::{HashMap, HashSet};
use std::future::Future;
use std::time::Duration;

/// How long an engine may wait for a registry's first answer without a word. Behind it is the deadline of the pull.
const PULL_SILENCE: Duration = Duration::from_secs(24 * 3600);

/// A call that failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No answer within the deadline.
    #[error("{call} was not answered within {limit:?}")]
    Late {
        /// The call.
        call: &'static str,
        /// Its deadline.
        limit: Duration,
    },
    /// The engine refused, or cannot be reached.
    #[error("{call} failed")]
    Failed {
        /// The call.
        call: &'static str,
        /// What it said.
        #[source]
        source: Error,
    },
}

impl EngineError {
    /// The sentence for a person, the cause included, bounded.
    pub fn short(&self) -> String {
        let text = match self {
            Self::Late { .. } => self.to_string(),
            Self::Failed { call, source: Error::DockerResponseServerError { status_code, message } }
                if !self.is_refusal() =>
            {
                format!("{call} was answered with {status_code}: {message}")
            }
            Self::Failed { source: Error::DockerResponseServerError { message, .. }, .. } => message.clone(),
            Self::Failed { call, source } => {
                let mut text = format!("{call}: {source}");
                let mut cause = std::error::Error::source(source);
                while let Some(deeper) = cause {
                    let said = deeper.to_string();
                    if !text.contains(&said) {
                        text = format!("{text}: {said}");
                    }
                    cause = deeper.source();
                }
                text
            }
        };
        bounded(&text)
    }

    fn status(&self) -> Option<u16> {
        match self {
            Self::Failed { source: Error::DockerResponseServerError { status_code, .. }, .. } => Some(*status_code),
            _ => None,
        }
    }

    /// True when the engine does not have the image.
    pub fn is_missing_image(&self) -> bool {
        self.status() == Some(404) && self.short().to_ascii_lowercase().contains("no such image")
    }

    /// True when the engine answered, with a no; false when it did not answer at all, or what stands before it answered for it (502 to
    /// 504: no connection to it, or no answer from it).
    pub fn is_refusal(&self) -> bool {
        self.status().is_some_and(|status| !matches!(status, 502..=504))
    }

    /// True when what was named does not exist.
    pub fn is_missing(&self) -> bool {
        self.status() == Some(404)
    }

    /// True when every address pool that the engine may take networks from is in use. It has no code for it.
    pub(super) fn is_out_of_networks(&self) -> bool {
        let said = self.short();
        let words = ["non-overlapping IPv4 address pool", "predefined address pools have been fully subnetted"];
        self.is_refusal() && words.iter().any(|words| said.contains(words))
    }

    /// True when the engine's message has `text`.
    pub(super) fn says(&self, text: &str) -> bool {
        self.short().contains(text)
    }
}

/// What a container is seen to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ContainerState {
    pub(super) running: bool,
    exit_code: i64,
    oom_killed: bool,
    error: String,
}

impl ContainerState {
    pub(super) fn sentence(&self) -> String {
        let error = if self.error.is_empty() { String::new() } else { format!(": {}", self.error) };
        // A warden that ends by itself has smaller codes, and a job has no way to its warden.
        let how = match (self.exit_code, self.oom_killed) {
            (code, true) => format!("ended with code {code}, out of memory"),
            (137, false) => {
                "was killed from outside (code 137): its warden, its shim or the engine was ended".to_owned()
            }
            (code, false) => format!("ended with code {code}"),
        };
        format!("its container {how}{error}")
    }
}

/// Text from outside in one line, not too long.
fn bounded(text: &str) -> String {
    let mut line = String::new();
    for c in text.chars().take(400) {
        match c {
            '\n' => line.push(' '),
            // Quotes are harmless, and engines write many.
            '"' | '\'' | '\\' => line.push(c),
            other => line.extend(other.escape_debug()),
        }
    }
    line
}

/// One line of what the engine says of a pull.
#[derive(Debug)]
pub(super) struct PullLine {
    /// The layer, or the tag when it is of the image.
    pub(super) layer: String,
    pub(super) status: String,
    pub(super) done: u64,
    pub(super) size: u64,
}

/// A pull that failed.
#[derive(Debug)]
pub(super) enum PullError {
    /// The engine said why.
    Said {
        /// Of its answer; `None` when that had begun already.
        status: Option<u16>,
        text: String,
    },
    /// The engine waits for the registry, and said nothing yet.
    Silent(String),
    /// The engine is not there any more.
    NoEngine(String),
}

/// A container of a list.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) name: String,
    pub(super) labels: HashMap<String, String>,
    pub(super) running: bool,
    /// Volumes that it uses, by name.
    pub(super) volumes: Vec<String>,
}

/// A connection to one engine.
#[derive(Clone)]
pub struct Engine {
    docker: Docker,
    limit: Duration,
    local: bool,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Engine {
    /// Connects to `host` (`unix:///…` or `tcp://…`) and agrees on an API version. `limit` is the deadline of each
    /// ordinary call. Errors: the engine does not answer within `connect`.
    pub async fn connect(host: &str, connect: Duration, limit: Duration) -> Result<Self, EngineError> {
        let failed = |source| EngineError::Failed { call: "connect", source };
        let docker = Self::client(host, limit).map_err(failed)?;
        let docker = tokio::time::timeout(connect, docker.negotiate_version())
            .await
            .map_err(|_| EngineError::Late { call: "version", limit: connect })?
            .map_err(failed)?;
        Ok(Self { docker, limit, local: host.starts_with("unix://") })
    }

    /// Whether its processes are to be looked for on this host.
    pub fn is_local(&self) -> bool {
        self.local
    }

    fn client(host: &str, limit: Duration) -> Result<Docker, Error> {
        // The client's own timeout is a second lock behind ours.
        let seconds = limit.as_secs().max(1) * 4;
        if host.starts_with("unix://") {
            Docker::connect_with_unix(host, seconds, API_DEFAULT_VERSION)
        } else {
            Docker::connect_with_http(host, seconds, API_DEFAULT_VERSION)
        }
    }

    async fn call<T>(
        &self,
        call: &'static str,
        limit: Duration,
        answer: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, EngineError> {
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(source)) => Err(EngineError::Failed { call, source }),
            Err(_) => Err(EngineError::Late { call, limit }),
        }
    }

    /// Asks whether the engine is there and knows its containers: not by its `/_ping`, which needs a right of its own and is answered
    /// also by one that can do nothing any more.
    pub async fn ping(&self) -> Result<(), EngineError> {
        let options = ListContainersOptionsBuilder::default().limit(1).build();
        self.call("ping", self.limit, self.docker.list_containers(Some(options))).await.map(drop)
    }

    /// What the engine says about itself.
    pub(super) async fn about(
        &self,
    ) -> Result<(bollard::models::SystemVersion, bollard::models::SystemInfo), EngineError> {
        let version = self.call("version", self.limit, self.docker.version()).await?;
        let info = self.call("info", self.limit, self.docker.info()).await?;
        Ok((version, info))
    }

    /// The engine's own id, the same for everybody who uses it.
    pub async fn id(&self) -> Result<Option<String>, EngineError> {
        Ok(self.call("info", self.limit, self.docker.info()).await?.id.filter(|id| !id.is_empty()))
    }

    /// How many cores it has for containers; `None` where it does not say, or cannot hold a container to some of them.
    pub(super) async fn cores(&self) -> Result<Option<u32>, EngineError> {
        let info = self.call("info", self.limit, self.docker.info()).await?;
        let count = info.ncpu.filter(|_| info.cpu_set != Some(false));
        Ok(count.and_then(|count| u32::try_from(count).ok()))
    }

    /// Whether an image is there.
    pub(super) async fn has_image(&self, image: &str) -> Result<bool, EngineError> {
        match self.call("inspect image", self.limit, self.docker.inspect_image(image)).await {
            Ok(_) => Ok(true),
            Err(error) if error.is_missing() => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The image of that name.
    pub(super) async fn find_image(&self, name: &str) -> Result<Option<Found>, EngineError> {
        match self.call("inspect image", self.limit, self.docker.inspect_image(name)).await {
            Ok(image) => {
                let digests = image.repo_digests.unwrap_or_default();
                Ok(image.id.map(|id| Found { id, digests }))
            }
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Has the engine ask the image's registry, with what is said meanwhile. The deadline is the caller's; dropped, the engine gives up too.
    pub(super) fn pull(
        &self,
        name: &ImageName,
        login: Option<String>,
    ) -> impl Stream<Item = Result<PullLine, PullError>> + use<> {
        let options = CreateImageOptionsBuilder::default().from_image(&name.repository()).tag(name.version()).build();
        let mut docker = self.docker.clone().with_timeout(PULL_SILENCE);
        // Not by the client's own way: it writes the header in another alphabet than the engine reads, so that some passwords get lost.
        if let Some(login) = login {
            docker = docker.with_request_modifier(move |mut request| {
                // Base64 is always a header's value.
                if let Ok(login) = login.parse() {
                    request.headers_mut().insert("x-registry-auth", login);
                }
                request
            });
        }
        docker.create_image(Some(options), None, None).map(|line| match line {
            Ok(line) => {
                let (done, size) = line.progress_detail.map_or((None, None), |detail| (detail.current, detail.total));
                let number = |number: Option<i64>| u64::try_from(number.unwrap_or_default()).unwrap_or_default();
                Ok(PullLine {
                    layer: line.id.unwrap_or_default(),
                    status: line.status.unwrap_or_default(),
                    done: number(done),
                    size: number(size),
                })
            }
            Err(Error::DockerStreamError { error }) => Err(PullError::Said { status: None, text: bounded(&error) }),
            Err(Error::DockerResponseServerError { status_code, message }) => {
                Err(PullError::Said { status: Some(status_code), text: bounded(&message) })
            }
            Err(Error::RequestTimeoutError) => {
                Err(PullError::Silent(format!("the engine had nothing to say for {PULL_SILENCE:?}")))
            }
            Err(source) => Err(PullError::NoEngine(EngineError::Failed { call: "pull", source }.short())),
        })
    }

    /// All images, everybody's.
    pub(super) async fn list_images(&self) -> Result<Vec<ListedImage>, EngineError> {
        let options = ListImagesOptionsBuilder::default().all(false).build();
        let found = self.call("list images", self.limit, self.docker.list_images(Some(options))).await?;
        // What has no name is listed under this one.
        let named = |names: Vec<String>| names.into_iter().filter(|name| !name.contains("<none>")).collect();
        let one = |image: bollard::models::ImageSummary| ListedImage {
            id: image.id,
            tags: named(image.repo_tags),
            digests: named(image.repo_digests),
            size: u64::try_from(image.size).unwrap_or_default(),
        };
        Ok(found.into_iter().map(one).collect())
    }

    /// Ids of images that containers have, everybody's, running or not.
    pub(super) async fn images_in_use(&self) -> Result<HashSet<String>, EngineError> {
        let options = ListContainersOptionsBuilder::default().all(true).build();
        let found = self.call("list", self.limit, self.docker.list_containers(Some(options))).await?;
        Ok(found.into_iter().filter_map(|container| container.image_id).collect())
    }

    /// Takes a name from an image, and removes the image with its last one; the engine refuses while a container has it. One that is gone
    /// counts as done.
    pub(super) async fn remove_image(&self, name: &str) -> Result<(), EngineError> {
        let removed = self.docker.remove_image(name, None::<RemoveImageOptions>, None);
        match self.call("remove image", self.limit, removed).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_missing() => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) async fn create(&self, name: &str, body: ContainerCreateBody) -> Result<(), EngineError> {
        let options = CreateContainerOptionsBuilder::default().name(name).build();
        self.call("create", self.limit, self.docker.create_container(Some(options), body)).await.map(drop)
    }

    pub(super) async fn attach(&self, name: &str) -> Result<Link, EngineError> {
        let options =
            AttachContainerOptionsBuilder::default().stream(true).stdin(true).stdout(true).stderr(true).build();
        let attached = self.call("attach", self.limit, self.docker.attach_container(name, Some(options))).await?;
        let output = attached.output.filter_map(|part| async {
            match part {
                Ok(LogOutput::StdOut { message } | LogOutput::Console { message }) => Some(Ok(message)),
                // The warden's last words before it gives up; never part of the protocol.
                Ok(LogOutput::StdErr { message }) => {
                    let text: String = String::from_utf8_lossy(&message).chars().take(400).collect();
                    tracing::warn!(warden = %text.escape_debug(), "the warden wrote to its standard error");
                    None
                }
                Ok(LogOutput::StdIn { .. }) => None,
                Err(error) => Some(Err(error.to_string())),
            }
        });
        Ok(Link { output: Box::pin(output), input: attached.input })
    }

    pub(super) async fn start(&self, name: &str, limit: Duration) -> Result<(), EngineError> {
        self.call("start", limit, self.docker.start_container(name, None)).await
    }

    pub(super) async fn inspect_state(&self, name: &str) -> Result<Option<ContainerState>, EngineError> {
        match self.call("inspect", self.limit, self.docker.inspect_container(name, None)).await {
            Ok(found) => {
                let state = found.state.unwrap_or_default();
                Ok(Some(ContainerState {
                    running: state.running.unwrap_or_default(),
                    exit_code: state.exit_code.unwrap_or_default(),
                    oom_killed: state.oom_killed.unwrap_or_default(),
                    error: state.error.unwrap_or_default(),
                }))
            }
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Ends a container at once. One that has ended already, or is gone, counts as done.
    pub(super) async fn kill(&self, name: &str) -> Result<(), EngineError> {
        let options = KillContainerOptionsBuilder::default().signal("SIGKILL").build();
        match self.call("kill", self.limit, self.docker.kill_container(name, Some(options))).await {
            Err(error) if matches!(error.status(), Some(404 | 409)) => Ok(()),
            other => other,
        }
    }

    /// Removes a container, running or not, with its anonymous volumes. One that is gone counts as done.
    pub(super) async fn remove(&self, name: &str) -> Result<(), EngineError> {
        let options = RemoveContainerOptionsBuilder::default().force(true).v(true).build();
        match self.call("remove", self.limit, self.docker.remove_container(name, Some(options))).await {
            Err(error) if error.is_missing() => Ok(()),
            other => other,
        }
    }

    /// All containers, running or not, that carry the label `key=value`.
    pub(super) async fn list_labelled(&self, key: &str, value: &str) -> Result<Vec<Listed>, EngineError> {
        self.list_filtered(labelled(key, value)).await
    }

    /// All containers, everybody's.
    pub(super) async fn list(&self) -> Result<Vec<Listed>, EngineError> {
        self.list_filtered(HashMap::new()).await
    }

    async fn list_filtered(&self, filters: HashMap<String, Vec<String>>) -> Result<Vec<Listed>, EngineError> {
        let options = ListContainersOptionsBuilder::default().all(true).filters(&filters).build();
        let found = self.call("list", self.limit, self.docker.list_containers(Some(options))).await?;
        let listed = |container: bollard::models::ContainerSummary| {
            // The engine puts a slash before a name.
            let name = container.names.unwrap_or_default().first().map(|name| name.trim_start_matches('/').to_owned());
            Some(Listed {
                name: name.or(container.id)?,
                labels: container.labels.unwrap_or_default(),
                volumes: container.mounts.unwrap_or_default().into_iter().filter_map(|mount| mount.name).collect(),
                // A paused one goes on when whoever paused it lets it.
                running: matches!(
                    container.state,
                    Some(ContainerSummaryStateEnum::RUNNING | ContainerSummaryStateEnum::PAUSED)
                ),
            })
        };
        Ok(found.into_iter().filter_map(listed).collect())
    }

    /// All networks that carry the label `key=value`, with their labels.
    pub(super) async fn list_networks(
        &self,
        key: &str,
        value: &str,
    ) -> Result<Vec<(String, HashMap<String, String>)>, EngineError> {
        let options = ListNetworksOptionsBuilder::default().filters(&labelled(key, value)).build();
        let found = self.call("list networks", self.limit, self.docker.list_networks(Some(options))).await?;
        Ok(found.into_iter().filter_map(|one| Some((one.name?, one.labels.unwrap_or_default()))).collect())
    }

    /// Makes a network.
    pub(super) async fn create_network(&self, request: NetworkCreateRequest) -> Result<(), EngineError> {
        self.call("create network", self.limit, self.docker.create_network(request)).await.map(drop)
    }

    /// Removes a network; the engine refuses while a container is on it. One that is gone counts as done.
    pub(super) async fn remove_network(&self, name: &str) -> Result<(), EngineError> {
        match self.call("remove network", self.limit, self.docker.remove_network(name)).await {
            Err(error) if error.is_missing() => Ok(()),
            other => other,
        }
    }

    /// All volumes, everybody's, with their labels.
    pub(super) async fn list_volumes(&self) -> Result<Vec<(String, HashMap<String, String>)>, EngineError> {
        let found = self.call("list volumes", self.limit, self.docker.list_volumes(None::<ListVolumesOptions>)).await?;
        Ok(found.volumes.unwrap_or_default().into_iter().map(|volume| (volume.name, volume.labels)).collect())
    }

    /// Removes a volume; the engine refuses while a container uses it. One that is gone counts as done.
    pub(super) async fn remove_volume(&self, name: &str) -> Result<(), EngineError> {
        let options = None::<RemoveVolumeOptions>;
        match self.call("remove volume", self.limit, self.docker.remove_volume(name, options)).await {
            Err(error) if error.is_missing() => Ok(()),
            other => other,
        }
    }

    /// Size of a file in a container that need not run; `None` when it is not there.
    pub(super) async fn file_size(&self, name: &str, path: &str) -> Result<Option<u64>, EngineError> {
        let options = bollard::query_parameters::ContainerArchiveInfoOptionsBuilder::default().path(path).build();
        match self.call("stat", self.limit, self.docker.get_container_archive_info(name, Some(options))).await {
            Ok(info) => Ok(Some(u64::try_from(info.size).unwrap_or_default())),
            Err(error) if error.is_missing() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Unpacks a tar archive at `path` in a container that need not run.
    pub(super) async fn upload(&self, name: &str, path: &str, archive: Vec<u8>) -> Result<(), EngineError> {
        let options = UploadToContainerOptionsBuilder::default().path(path).build();
        let body = bollard::body_full(archive.into());
        self.call("upload", self.limit, self.docker.upload_to_container(name, Some(options), body)).await
    }
}

/// The filter for what carries the label `key=value`.
fn labelled(key: &str, value: &str) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), vec![format!("{key}={value}")])])
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_an_engine_says_is_a_line_with_its_quotes_as_they_are() {
        let said = "Get \"https://r/v2/\": dial tcp\nof 'it'\u{1b}[2J";
        assert_eq!(super::bounded(said), "Get \"https://r/v2/\": dial tcp of 'it'\\u{1b}[2J");
    }
}
