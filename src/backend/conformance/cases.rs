//! The cases, one rule each.

use super::{Case, Stop, Suite, failed, report, same};
use crate::backend::{Ask, Order};
use crate::job::{Capacity, Cause, LeaseToken, LogTotals, Phase, UnixMillis};
use crate::logstore::{FrameRef, Stream};
use crate::protocol::agent::{AttemptStanding, Load, Renewed, Reported, Step};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use std::time::Duration;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The case without which no other makes sense.
pub(super) const FIRST: &str = "empty";

type Run = for<'a> fn(&'a Suite) -> BoxFuture<'a, Case>;

/// Name, rule and code of each.
pub(super) const ALL: &[(&str, &str, Run)] = &[
    (FIRST, "an empty backend hands out nothing", |suite| empty(suite).boxed()),
    ("claim", "a submitted job is handed out, once, under an attempt's number and a token", |suite| {
        claim(suite).boxed()
    }),
    ("wake", "a claim that waits is answered when a job comes, and not only when its time is over", |suite| {
        wake(suite).boxed()
    }),
    ("order", "jobs are handed out by priority, then by age, and no more than asked for", |suite| order(suite).boxed()),
    ("stop", "a claim whose wait is given up loses no job", |suite| stop(suite).boxed()),
    ("release", "a job that was given back is handed out again, under a higher number", |suite| release(suite).boxed()),
    ("advance", "a phase is entered once, and entering it again changes nothing", |suite| advance(suite).boxed()),
    ("report", "a report ends the job, and the same report again changes nothing", |suite| end(suite).boxed()),
    ("lookup", "an attempt is told to be held, then ended; one that never was is unknown", |suite| {
        lookup(suite).boxed()
    }),
    ("renew", "leases are renewed in the order asked, and a wrong token is refused", |suite| renew(suite).boxed()),
    ("fence", "a report with a wrong token is refused, and changes nothing", |suite| fence(suite).boxed()),
    ("cancel_queued", "a job that was canceled while it waited is never handed out", |suite| {
        cancel_queued(suite).boxed()
    }),
    ("cancel_held", "the agent is told of a cancel, at the latest with the next renewal", |suite| {
        cancel_held(suite).boxed()
    }),
    ("output", "output arrives byte for byte before the end is told", |suite| output(suite).boxed()),
    ("expiry", "a lease that ran out hands the job to the next, and the late holder is refused", |suite| {
        expiry(suite).boxed()
    }),
];

async fn empty(suite: &Suite) -> Case {
    let found = suite.claim(1, Duration::ZERO).await?;
    for grant in &found {
        suite.backend.release(grant.attempt, grant.token, "conformance", None).await.map_err(failed("release"))?;
    }
    if found.is_empty() {
        Ok(())
    } else {
        Err(Stop::Fail("there is a job already: use a backend without any".to_owned()))
    }
}

async fn claim(suite: &Suite) -> Case {
    let grant = suite.held().await?;
    if grant.attempt.attempt == 0 {
        return Err(Stop::Fail("the attempt's number is 0, and counts from 1".to_owned()));
    }
    let spec = serde_json::to_value(&grant.spec).unwrap_or_default();
    same("the spec's image", &spec["image"], &"conformance".into())?;
    let again = suite.claim(4, Duration::ZERO).await?;
    same("the number of jobs in a second claim", &again.len(), &0)?;
    suite.end(&grant).await
}

async fn wake(suite: &Suite) -> Case {
    let began = Instant::now();
    let submit = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        suite.submit(0).await
    };
    let (found, submitted) = tokio::join!(suite.claim(1, Duration::from_secs(20)), submit);
    let (found, submitted) = (found?, submitted?);
    let grant = found.first().ok_or_else(|| Stop::Fail("the claim came back empty".to_owned()))?;
    same("the claimed job", &grant.attempt.job, &submitted)?;
    suite.end(grant).await?;
    let took = began.elapsed();
    if took < Duration::from_secs(10) { Ok(()) } else { Err(Stop::Fail(format!("it took {} s", took.as_secs()))) }
}

async fn order(suite: &Suite) -> Case {
    let mut wanted = Vec::new();
    for priority in [0, 5, 5, -5] {
        wanted.push(suite.submit(priority).await?);
    }
    let wanted = [wanted[1], wanted[2], wanted[0], wanted[3]];
    let mut grants = suite.claim(3, Duration::from_secs(5)).await?;
    let found: Vec<_> = grants.iter().map(|grant| grant.attempt.job).collect();
    same("the order", &found.as_slice(), &&wanted[..3])?;
    grants.extend(suite.claim(3, Duration::from_secs(5)).await?);
    same("the last one", &grants.last().map(|grant| grant.attempt.job), &Some(wanted[3]))?;
    for grant in &grants {
        suite.end(grant).await?;
    }
    Ok(())
}

async fn stop(suite: &Suite) -> Case {
    let stop = CancellationToken::new();
    let free = Capacity {
        slots: 1,
        cpu: crate::job::Cpus::from_milli(64_000),
        memory: crate::job::ByteSize::from_mib(65_536),
        ..Capacity::default()
    };
    let ask = Ask { max: 1, free, wait: Duration::from_secs(20), load: Load { health: 100, ..Load::default() } };
    let began = Instant::now();
    let give_up = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let id = suite.submit(0).await;
        stop.cancel();
        id
    };
    let (found, id) = tokio::join!(suite.backend.claim(ask, &stop), give_up);
    let (mut found, id) = (found.map_err(failed("claim"))?, id?);
    if began.elapsed() > Duration::from_secs(15) {
        return Err(Stop::Fail("the wait was not given up".to_owned()));
    }
    // It came with the answer, or it is there for the next claim.
    if found.is_empty() {
        found = suite.claim(1, Duration::from_secs(5)).await?;
    }
    let grant = found.first().ok_or_else(|| Stop::Fail("the job is lost between the two claims".to_owned()))?;
    same("the job", &grant.attempt.job, &id)?;
    suite.end(grant).await
}

async fn release(suite: &Suite) -> Case {
    let first = suite.held().await?;
    let released =
        suite.backend.release(first.attempt, first.token, "conformance", None).await.map_err(failed("release"))?;
    same("the release", &released, &Step::Applied)?;
    let mut again = suite.claim(1, Duration::from_secs(5)).await?;
    let again = again.pop().ok_or_else(|| Stop::Fail("the job does not come again".to_owned()))?;
    same("the job", &again.attempt.job, &first.attempt.job)?;
    if again.attempt.attempt <= first.attempt.attempt {
        return Err(Stop::Fail(format!(
            "its attempt is {} again: cells and logs are named after it",
            again.attempt.attempt
        )));
    }
    suite.end(&again).await
}

async fn advance(suite: &Suite) -> Case {
    let grant = suite.held().await?;
    let enter = |phase| suite.backend.advance(grant.attempt, grant.token, phase, UnixMillis::now(), "conformance");
    same("preparing", &enter(Phase::Preparing).await.map_err(failed("advance"))?, &Step::Applied)?;
    same("running", &enter(Phase::Running).await.map_err(failed("advance"))?, &Step::Applied)?;
    same("running again", &enter(Phase::Running).await.map_err(failed("advance"))?, &Step::AlreadyThere)?;
    let seen = suite.desk.see(grant.attempt.job).await.map_err(Stop::Fail)?;
    same("the phase that users see", &seen.phase.as_str(), &"running")?;
    suite.end(&grant).await
}

async fn end(suite: &Suite) -> Case {
    let grant = suite.held().await?;
    let report = report(grant.attempt, LogTotals::default());
    same(
        "the first",
        &suite.backend.report(&report, grant.token).await.map_err(failed("report"))?,
        &Reported::Applied,
    )?;
    let seen = suite.desk.see(grant.attempt.job).await.map_err(Stop::Fail)?;
    same("what users see", &(seen.phase.as_str(), seen.cause.as_deref()), &("ended", Some("exit_code")))?;
    let again = suite.backend.report(&report, grant.token).await.map_err(failed("report"))?;
    same("the second", &again, &Reported::AlreadyEnded)
}

async fn lookup(suite: &Suite) -> Case {
    let grant = suite.held().await?;
    let mut never = grant.attempt;
    never.attempt += 1000;
    let asked = [(grant.attempt, grant.token), (never, LeaseToken(u64::MAX >> 1))];
    let found = suite.backend.lookup(&asked).await.map_err(failed("lookup"))?;
    same("what is told", &found.as_slice(), &&[AttemptStanding::Held, AttemptStanding::Unknown][..])?;
    suite.end(&grant).await?;
    let found = suite.backend.lookup(&asked[..1]).await.map_err(failed("lookup"))?;
    same("what is told at the end", &found.as_slice(), &&[AttemptStanding::Ended][..])
}

fn leases(suite: &Suite) -> Result<crate::job::Millis, Stop> {
    suite.backend.capabilities().lease.ok_or_else(|| Stop::Skip("it has no leases".to_owned()))
}

async fn renew(suite: &Suite) -> Case {
    leases(suite)?;
    let (one, two) = (suite.held().await?, suite.held().await?);
    let wrong = LeaseToken(one.token.0 ^ 1 << 40);
    let asked = [(two.attempt, two.token), (one.attempt, wrong), (one.attempt, one.token)];
    let found = suite.backend.renew(&asked).await.map_err(failed("renew"))?;
    let good: Vec<bool> = found.iter().map(|one| matches!(one, Renewed::Renewed { .. })).collect();
    same("what was renewed", &good.as_slice(), &&[true, false, true][..])?;
    suite.end(&one).await?;
    let found = suite.backend.renew(&asked[2..]).await.map_err(failed("renew"))?;
    same("a renewal after the end", &found.as_slice(), &&[Renewed::Refused][..])?;
    suite.end(&two).await
}

async fn fence(suite: &Suite) -> Case {
    if !suite.backend.capabilities().fenced_end {
        return Err(Stop::Skip("it does not look at tokens".to_owned()));
    }
    let grant = suite.held().await?;
    let wrong = LeaseToken(grant.token.0 ^ 1 << 40);
    let report = report(grant.attempt, LogTotals::default());
    same("the report", &suite.backend.report(&report, wrong).await.map_err(failed("report"))?, &Reported::Unknown)?;
    let step = suite.backend.advance(grant.attempt, wrong, Phase::Running, UnixMillis::now(), "conformance").await;
    same("an advance", &step.map_err(failed("advance"))?, &Step::Refused)?;
    let seen = suite.desk.see(grant.attempt.job).await.map_err(Stop::Fail)?;
    same("its cause", &seen.cause, &None)?;
    suite.end(&grant).await
}

async fn cancel_queued(suite: &Suite) -> Case {
    let id = suite.submit(0).await?;
    suite.desk.cancel(id).await.map_err(Stop::Fail)?;
    let seen = suite.desk.see(id).await.map_err(Stop::Fail)?;
    same("its cause", &seen.cause.as_deref(), &Some("canceled"))?;
    same("jobs in a claim", &suite.claim(1, Duration::ZERO).await?.len(), &0)
}

async fn cancel_held(suite: &Suite) -> Case {
    if !suite.backend.capabilities().cancel {
        return Err(Stop::Skip("it does not tell of cancels".to_owned()));
    }
    let mut orders = suite.backend.orders();
    let grant = suite.held().await?;
    suite.desk.cancel(grant.attempt.job).await.map_err(Stop::Fail)?;
    let told = async {
        loop {
            match orders.recv().await {
                Ok(Order::Cancel { job, .. }) if job == grant.attempt.job => return true,
                Ok(Order::Cancel { .. }) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                Err(tokio::sync::broadcast::error::RecvError::Closed) => return false,
            }
        }
    };
    let at_once = tokio::time::timeout(Duration::from_secs(2), told).await.unwrap_or(false);
    let renewed = suite.backend.renew(&[(grant.attempt, grant.token)]).await.map_err(failed("renew"))?;
    let told = matches!(renewed.as_slice(), [Renewed::Renewed { cancel_requested: true, .. }]);
    if !at_once && !told {
        return Err(Stop::Fail("neither an order nor a renewal tells of it".to_owned()));
    }
    let report = crate::job::Report { cause: Cause::Canceled, ..report(grant.attempt, LogTotals::default()) };
    same(
        "the report",
        &suite.backend.report(&report, grant.token).await.map_err(failed("report"))?,
        &Reported::Applied,
    )?;
    let seen = suite.desk.see(grant.attempt.job).await.map_err(Stop::Fail)?;
    same("its cause", &seen.cause.as_deref(), &Some("canceled"))
}

/// More than one window, in frames of all sizes.
async fn output(suite: &Suite) -> Case {
    if !suite.backend.capabilities().log {
        return Err(Stop::Skip("it takes no output".to_owned()));
    }
    let grant = suite.held().await?;
    let (logs, attempt) = (suite.logs.clone(), grant.attempt);
    let create = tokio::task::spawn_blocking(move || logs.create(attempt));
    let cannot = |error: &dyn std::fmt::Display| Stop::Fail(format!("the local log: {error}"));
    let mut writer = create.await.map_err(|error| cannot(&error))?.map_err(|error| cannot(&error))?;
    suite.backend.log_began(grant.attempt, grant.token);
    let mut wanted = Vec::new();
    for seq in 1..=400u64 {
        let byte = u8::try_from(seq % 251).unwrap_or_default();
        let bytes = vec![byte; usize::try_from(seq * 37 % 20_000).unwrap_or_default()];
        let mut frame = FrameRef { seq, stream: Stream::Stdout, time_us: seq, bytes: &bytes, gap: 0 };
        if seq % 100 == 0 {
            // What a job dropped is told in its place, and is no output.
            frame = FrameRef { stream: Stream::Stderr, bytes: &[], gap: seq, ..frame };
        }
        writer.append(&[frame]).map_err(|error| cannot(&error))?;
        wanted.extend_from_slice(frame.bytes);
        if seq % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let totals = LogTotals { complete: true, ..writer.finish() };
    if !suite.backend.flush_log(grant.attempt, totals.frames).await {
        return Err(Stop::Fail("it never says that the output is durable".to_owned()));
    }
    let report = report(grant.attempt, totals);
    same(
        "the report",
        &suite.backend.report(&report, grant.token).await.map_err(failed("report"))?,
        &Reported::Applied,
    )?;
    let found = suite.desk.output(grant.attempt.job).await.map_err(Stop::Fail)?;
    suite.backend.log_done(grant.attempt);
    if found == wanted {
        return Ok(());
    }
    let differs = found.iter().zip(&wanted).take_while(|(one, other)| one == other).count();
    Err(Stop::Fail(format!(
        "{} bytes came of {}, and byte {differs} is the first that differs",
        found.len(),
        wanted.len()
    )))
}

async fn expiry(suite: &Suite) -> Case {
    let lease = leases(suite)?.as_duration();
    if lease > suite.patience {
        return Err(Stop::Skip(format!("its lease is {} s; --patience waits for it", lease.as_secs())));
    }
    let late = suite.held().await?;
    let mut next = suite.claim(1, lease + Duration::from_secs(20)).await?;
    let next = next.pop().ok_or_else(|| Stop::Fail("the job is not handed out again".to_owned()))?;
    same("the job", &next.attempt.job, &late.attempt.job)?;
    let renewed = suite.backend.renew(&[(late.attempt, late.token)]).await.map_err(failed("renew"))?;
    same("a late renewal", &renewed.as_slice(), &&[Renewed::Refused][..])?;
    let report = report(late.attempt, LogTotals::default());
    same(
        "a late report",
        &suite.backend.report(&report, late.token).await.map_err(failed("report"))?,
        &Reported::Unknown,
    )?;
    suite.end(&next).await
}
