//! The command line: one file a noun. Data goes to standard output, everything else to standard error.
//!
//! [`EXIT_CODES`] says what each exit code means.

mod agent;
mod agents;
mod api;
mod audit;
mod backup;
mod certificate;
mod client;
mod config;
mod conformance;
mod dlq;
mod doctor;
mod drain;
mod dump;
mod engine_lock;
mod enroll;
mod exit;
mod explain;
mod follow;
mod given_key;
mod health;
mod home;
mod image;
mod inputs;
mod job;
mod keys;
mod man;
mod node;
mod paint;
mod parts;
mod policy;
mod progress;
mod queue;
mod reference;
mod reload;
mod service;
mod show;
mod ssh;
mod sweep;
mod systemd;
mod telling;
mod terminal;
mod up;

#[cfg(test)]
mod fleet_tests;

pub use exit::EXIT_CODES;

pub use reference::{reads, reference};

use crate::config::{Config, HostFacts, LoadInput, load};
use crate::job::{Millis, Problems};
use crate::telemetry;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;

/// What a command ends with when it cannot do its work.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// An ordinary failure.
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }
    /// Used wrongly.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: exit::USAGE, message: message.into() }
    }
    /// Something that is needed is not there.
    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self { code: exit::UNAVAILABLE, message: message.into() }
    }
    /// The settings are bad.
    pub(crate) fn config(message: impl Into<String>) -> Self {
        Self { code: exit::CONFIG, message: message.into() }
    }
}

/// Runs jobs, each in its own sealed, single-use cell.
#[derive(Debug, Parser)]
#[command(name = "jobcell", version, propagate_version = true, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args, Clone)]
#[command(next_help_heading = "Options of all commands")]
pub(crate) struct Global {
    /// Settings file [default: /etc/jobcell/config.yaml if it is there]
    #[arg(long, global = true, value_name = "FILE", env = "JOBCELL_CONFIG")]
    config: Option<PathBuf>,
    /// Where queue, logs and keys are kept
    #[arg(long, global = true, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The API to talk to [default: what <data-dir>/endpoint says]
    #[arg(long, global = true, value_name = "URL", env = "JOBCELL_SERVER_URL")]
    server: Option<String>,
    /// Authorities whose certificates are believed at https://, in PEM [default: SSL_CERT_FILE, else the system's]
    #[arg(long, global = true, value_name = "FILE", env = "JOBCELL_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Output::Table)]
    output: Output,
    /// Print data and errors only
    #[arg(short, long, global = true)]
    quiet: bool,
    /// Show what jobs wrote to a terminal as it is: it may move the cursor, set titles and hide text
    #[arg(long, global = true)]
    raw: bool,
    /// No colour, as with NO_COLOR in the environment
    #[arg(long, global = true)]
    no_color: bool,
}

impl Global {
    /// What a person may want to know beside the data.
    pub(crate) fn note(&self, text: &str) {
        if !self.quiet {
            eprintln!("{text}");
        }
    }
}

/// How data is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// For programs.
    Json,
    /// For programs and people.
    Yaml,
    /// For people.
    Table,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the agent with its embedded backend, until a signal
    Up {
        /// Address of the API; port 0 takes a free one
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<String>,
    },
    /// Start the backend alone, for agents on other hosts, until a signal
    Server {
        /// Address of the API; port 0 takes a free one
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<String>,
    },
    /// Start an agent that claims from servers elsewhere, until a signal
    #[command(args_conflicts_with_subcommands = true)]
    Agent {
        /// A server's address, in place of the `backends` of the settings; a join token is in JOBCELL_JOIN_TOKEN, or the key in JOBCELL_AGENT_KEY
        #[arg(long, value_name = "URL")]
        backend: Option<String>,
        /// Address of health and metrics; port 0 takes a free one
        #[arg(long, value_name = "ADDRESS")]
        listen: Option<String>,
        #[command(subcommand)]
        command: Option<agent::AgentCommand>,
    },
    /// Look at agents, give and take away their keys
    #[command(subcommand)]
    Agents(agents::AgentsCommand),
    /// Who may submit and look after jobs at this server
    #[command(subcommand)]
    Keys(keys::KeysCommand),
    /// Show who did what, when, from where and what came of it
    Audit(audit::AuditArgs),
    /// Copy the data of this host's server, look at copies, put one back
    #[command(subcommand)]
    Backup(backup::BackupCommand),
    /// Hand no more jobs to an agent; those that it has go on
    Drain(drain::DrainArgs),
    /// Hand jobs to a drained agent again
    Resume(drain::ResumeArgs),
    /// Trust an agent with no more jobs, until it is resumed with --quarantined
    Quarantine(drain::QuarantineArgs),
    /// Check what a backend of your own does for an agent, case by case
    Conformance {
        /// Its address; the keys are in JOBCELL_AGENT_KEY (agent) and JOBCELL_API_KEY (user)
        url: String,
        /// Wait for leases to run out that are not longer than this
        #[arg(long, value_name = "TIME", default_value = "15s")]
        patience: Millis,
    },
    /// Submit, run, look at and cancel jobs
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Look at jobs that were given up, and run them again
    #[command(subcommand)]
    Dlq(dlq::DlqCommand),
    /// Look at the images of this host's engine, get them and remove them
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Run one command as a job; the same as `job exec`
    Exec(job::exec::ExecArgs),
    /// Show how many jobs stand where, which one waits longest and why
    Queue,
    /// Check this host: engine, limits, images, disk; each with a remedy
    Doctor,
    /// Say what a code means and what to do: of the API's errors, of how jobs end, or an exit code
    Explain {
        /// The code; without it, all of them
        code: Option<String>,
    },
    /// Ask the jobcell process of this host whether it is well; exits with 1 when it is not, with 69 when none answers
    Health(health::HealthArgs),
    /// Check and show the settings
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Say what the operator's policy allows, and check one
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    /// Look at the keys of hosts that jobs can run on, and try to log in there
    #[command(subcommand)]
    Ssh(ssh::SshCommand),
    /// Print what makes a shell complete commands and flags
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page, or write all pages
    Man {
        /// A folder for the pages of all commands, such as /usr/local/share/man/man1
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
    },
    /// Print the version
    Version,
}

impl Command {
    /// Whether it is a service's: one that runs until a signal.
    fn stays(&self) -> bool {
        matches!(self, Self::Up { .. } | Self::Server { .. } | Self::Agent { command: None, .. })
    }
}

/// Runs the command that the process was started with.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are answers, everything else is wrong usage.
            let code = if error.use_stderr() { exit::USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("jobcell: the runtime cannot be started: {error}");
            return ExitCode::from(exit::UNAVAILABLE);
        }
    };
    let stays = cli.command.stays();
    let result = runtime.block_on(dispatch(cli));
    // What still blocks a thread (a read of a terminal) must not hold up the end.
    runtime.shutdown_background();
    match result {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            let reason = terminal::lines(&failure.to_string()).to_string();
            eprintln!("jobcell: {reason}");
            if stays {
                systemd::failed(&reason);
            }
            ExitCode::from(failure.code)
        }
    }
}

async fn dispatch(cli: Cli) -> Result<u8, Failure> {
    let Cli { global, command } = cli;
    paint::decide(global.no_color);
    terminal::decide(global.raw);
    let long_running = QUIET.filter(|_| global.quiet);
    match command {
        Command::Up { listen } => {
            let given = [("server.listen", listen)];
            up::up(began(&global, &given, long_running)?, global.quiet).await
        }
        Command::Server { listen } => {
            let given = [("server.listen", listen)];
            up::server(began(&global, &given, long_running)?, global.quiet).await
        }
        Command::Agent { command: Some(agent::AgentCommand::Sweep(args)), .. } => sweep::run(args, &global).await,
        Command::Agent { backend, listen, command: None } => {
            // Beside --backend it is that server's; those of the settings have their own.
            let ca_file =
                global.ca_file.as_ref().filter(|_| backend.as_ref().is_some_and(|url| url.starts_with("https://")));
            let ca_file = ca_file.map(|file| file.display().to_string());
            let flags = [("agent.listen", listen), ("backends.main.url", backend), ("backends.main.ca_file", ca_file)];
            Box::pin(agent::agent(began(&global, &flags, long_running)?, global.quiet)).await
        }
        Command::Agents(command) => agents::run(command, &global).await,
        Command::Keys(command) => keys::run(command, &global).await,
        Command::Audit(args) => audit::run(args, &global).await,
        Command::Backup(command) => backup::run(command, &global).await,
        Command::Drain(args) => drain::drain(args, &global).await,
        Command::Resume(args) => drain::resume(args, &global).await,
        Command::Quarantine(args) => drain::quarantine(args, &global).await,
        Command::Conformance { url, patience } => {
            settings(&global, &[], QUIET)?;
            conformance::run(&url, patience, &global).await
        }
        Command::Job(command) => Box::pin(job::run(command, &global)).await,
        Command::Dlq(command) => dlq::run(command, &global).await,
        Command::Image(command) => image::run(command, &global).await,
        Command::Exec(args) => job::exec::run(args, &global).await,
        Command::Queue => queue::run(&global).await,
        Command::Doctor => doctor::run(&settings(&global, &[], QUIET)?, global.output).await,
        Command::Explain { code } => explain::run(code.as_deref(), &global),
        Command::Health(args) => health::run(&args, &global).await,
        Command::Config(command) => config::run(&command, &global),
        Command::Policy(command) => policy::run(command, &global),
        Command::Ssh(command) => ssh::run(command, &global).await,
        Command::Completions { shell } => Ok(man::completions(shell)),
        Command::Man { dir } => man::pages(dir.as_deref()),
        Command::Version => show::version(global.output).map(|()| 0),
    }
}

/// Commands that a person runs say what went wrong, not what went well; RUST_LOG asks for more.
pub(crate) const QUIET: Option<&str> = Some("error");

/// Settings that have flags of their own, with what was given.
type Given<'a> = &'a [(&'static str, Option<String>)];

/// Where settings come from in this process: its flags, its environment, and the file that they name.
fn load_input(global: &Global, given: Given<'_>) -> Result<LoadInput, Failure> {
    let mut flags: Vec<(&str, String)> = Vec::new();
    if let Some(dir) = &global.data_dir {
        let dir = std::path::absolute(dir).map_err(|error| Failure::usage(format!("--data-dir: {error}")))?;
        flags.push(("data_dir", dir.display().to_string()));
    }
    flags.extend(given.iter().filter_map(|(key, value)| Some((*key, value.clone()?))));
    let env = std::env::vars_os().filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)));
    Ok(LoadInput { file: global.config.clone(), env: env.collect(), flags, host: HostFacts::read() })
}

fn bad_settings(problems: &Problems) -> Failure {
    Failure::config(format!("the settings have problems:\n{problems}"))
}

/// Loads the settings and starts logging, with `filter` in place of the configured one if RUST_LOG does not say.
fn settings(global: &Global, given: Given<'_>, filter: Option<&str>) -> Result<Config, Failure> {
    let input = load_input(global, given)?;
    let config = load(&input).map_err(|problems| bad_settings(&problems))?;
    start_logging(global, &config, filter)?;
    Ok(config)
}

/// The same for a process that stays, with what it takes to look after them. From here on no signal ends it that asks for something else.
fn began(global: &Global, given: Given<'_>, filter: Option<&str>) -> Result<reload::Began, Failure> {
    reload::expect_state_signal()?;
    let began = reload::Began::read(load_input(global, given)?).map_err(|problems| bad_settings(&problems))?;
    began.expect_signals()?;
    start_logging(global, &began.config(), filter)?;
    Ok(began)
}

fn start_logging(global: &Global, config: &Config, filter: Option<&str>) -> Result<(), Failure> {
    let said = std::env::var("RUST_LOG").ok().filter(|said| !said.is_empty());
    let filter = said.as_deref().or(filter).unwrap_or(&config.telemetry.log_filter);
    telemetry::init(config.telemetry.log_format, filter, paint::wanted(global.no_color)).map_err(Failure::config)
}
