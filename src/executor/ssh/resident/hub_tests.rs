//! A connection to a scripted hub: what one job does is no matter of another one's, and every end is told once.

use super::*;
use crate::executor::ssh::resident::link::End;
use futures_util::stream;
use tokio::io::{AsyncReadExt, DuplexStream, ReadHalf, WriteHalf};

const AGES: Ages = Ages { idle: Duration::from_secs(300), most: Duration::from_secs(3600) };

/// The other side.
struct Scripted {
    read: ReadHalf<DuplexStream>,
    write: WriteHalf<DuplexStream>,
    decoder: MuxDecoder,
}

/// What a hub hears, as the tests compare it.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Open(u16, String),
    Attach(u16, String),
    Data(u16, Vec<u8>),
    Leave(u16),
    Kill(String),
    List,
    End,
}

impl Scripted {
    async fn hear(&mut self) -> Heard {
        loop {
            if let Some(envelope) = self.decoder.next().expect("keeps to the envelope") {
                return match ToHub::decode(&envelope).expect("is well formed") {
                    ToHub::Open { channel, name } => Heard::Open(channel, name),
                    ToHub::Attach { channel, name } => Heard::Attach(channel, name),
                    ToHub::Data { channel, bytes } => Heard::Data(channel, bytes.to_vec()),
                    ToHub::Leave { channel } => Heard::Leave(channel),
                    ToHub::Kill { name } => Heard::Kill(name),
                    ToHub::List => Heard::List,
                    ToHub::Hello { .. } => continue,
                };
            }
            let mut bytes = vec![0; 65_536];
            match self.read.read(&mut bytes).await {
                Ok(count) if count > 0 => self.decoder.feed(&bytes[..count]),
                _ => return Heard::End,
            }
        }
    }

    async fn say(&mut self, message: FromHub<'_>) {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        self.write.write_all(&bytes).await.expect("writes");
    }

    async fn open(&mut self, channel: u16) {
        self.say(FromHub::Opened { channel, dir: format!("/home/x/{channel}"), pid: 7 }).await;
    }
}

fn stage() -> (Link, Scripted) {
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let (read, input) = tokio::io::split(ours);
    let output = stream::unfold(read, |mut read| async move {
        let mut bytes = vec![0; 16_384];
        match read.read(&mut bytes).await {
            Ok(count) if count > 0 => Some((Ok(bytes::Bytes::from(bytes[..count].to_vec())), read)),
            _ => None,
        }
    });
    let (read, write) = tokio::io::split(theirs);
    (Link { output: Box::pin(output), input: Box::pin(input) }, Scripted { read, write, decoder: MuxDecoder::new() })
}

fn begin(ages: Ages) -> (Hub, Scripted) {
    let (link, scripted) = stage();
    (Hub::begin(link, MuxDecoder::new(), Vec::new(), ages), scripted)
}

async fn opened(hub: &Hub, scripted: &mut Scripted, name: &str) -> (Arc<Joint>, u16) {
    let (joint, channel) = tokio::join!(hub.open(name), async {
        let Heard::Open(channel, _) = scripted.hear().await else { panic!("is opened") };
        scripted.open(channel).await;
        channel
    });
    (joint.expect("is opened"), channel)
}

#[tokio::test]
async fn a_hub_is_greeted_and_what_is_none_is_told() {
    let (mut link, mut scripted) = stage();
    let facts = vec![("mode".to_owned(), "resident".to_owned())];
    let (greeted, ()) = tokio::join!(async { greet(&mut link, &mut MuxDecoder::new()).await }, async {
        let hello = FromHub::Hello {
            version: MUX_VERSION,
            build: "1".into(),
            dir: "/d".into(),
            pid: 5,
            home: "/h".into(),
            facts: facts.clone(),
        };
        scripted.say(hello).await;
    });
    assert_eq!(greeted, Ok(Greeting { build: "1".into(), pid: 5, facts }));
    for (said, wanted) in [
        (FromHub::Fault { text: "no\x1b room".into() }, "no\\u{1b} room"),
        (FromHub::Gone { name: "x".into() }, "no hello"),
    ] {
        let (mut link, mut scripted) = stage();
        scripted.say(said).await;
        let error = greet(&mut link, &mut MuxDecoder::new()).await.expect_err("is none");
        assert!(error.contains(wanted), "{error}");
    }
    let (mut link, mut scripted) = stage();
    scripted.write.write_all(b"Welcome to web1! It is now ten past nine.").await.expect("writes");
    assert!(greet(&mut link, &mut MuxDecoder::new()).await.is_err());
    let (mut link, scripted) = stage();
    drop(scripted);
    assert!(greet(&mut link, &mut MuxDecoder::new()).await.is_err());
}

#[tokio::test]
async fn jobs_talk_side_by_side_and_leave_when_nobody_wants_them() {
    let (hub, mut scripted) = begin(AGES);
    let (one, first) = opened(&hub, &mut scripted, "one").await;
    let (two, second) = opened(&hub, &mut scripted, "two").await;
    assert_eq!((one.dir(), first == second), (format!("/home/x/{first}").as_str(), false));
    let (mut link, mut other) = (one.link(), two.link());
    link.input.write_all(b"to one").await.expect("writes");
    assert_eq!(scripted.hear().await, Heard::Data(first, b"to one".to_vec()));
    for (channel, bytes) in [(second, b"two".as_slice()), (first, b"one"), (999, b"nobody"), (second, b"more")] {
        scripted.say(FromHub::Data { channel, bytes }).await;
    }
    assert_eq!(link.output.next().await, Some(Ok("one".into())));
    assert_eq!(other.output.next().await, Some(Ok("two".into())));
    assert_eq!(other.output.next().await, Some(Ok("more".into())));
    // A link alone does not hold the channel's end back, nor does its end leave the channel while the cell has it.
    drop(link);
    drop(one);
    assert_eq!(scripted.hear().await, Heard::Leave(first));
    scripted.say(FromHub::Ended { channel: second, name: "two".into(), code: 0 }).await;
    assert_eq!(two.ended(Duration::from_secs(5)).await, Some(End::Over(0)));
    assert!(matches!(other.output.next().await, Some(Err(_))));
    assert_eq!(other.output.next().await, None);
    assert!(other.input.write_all(b"x").await.is_err());
    drop((two, other));
    // Nothing was said of the channel that had ended.
    let (killed, heard) = tokio::join!(hub.kill("three"), async {
        let heard = scripted.hear().await;
        scripted.say(FromHub::Gone { name: "three".into() }).await;
        heard
    });
    assert_eq!((killed, heard), (Ok(()), Heard::Kill("three".into())));
    let (killed, ()) = tokio::join!(hub.kill("four"), async {
        scripted.hear().await;
        scripted.say(FromHub::Left { name: "four".into(), text: "busy".into() }).await;
    });
    assert_eq!(killed, Err("busy".to_owned()));
}

#[tokio::test]
async fn what_the_hub_refuses_is_told_with_its_number() {
    let (hub, mut scripted) = begin(AGES);
    let (answer, _) = tokio::join!(hub.attach("gone"), async {
        let Heard::Attach(channel, name) = scripted.hear().await else { panic!("is attached to") };
        assert_eq!(name, "gone");
        scripted.say(FromHub::Failed { channel, errno: 2, step: "attach".into() }).await;
    });
    assert_eq!(answer.err(), Some(Failed::Said { errno: 2, step: "attach".into() }));
    // Somebody else takes it.
    let (joint, channel) = opened(&hub, &mut scripted, "one").await;
    let mut link = joint.link();
    scripted.say(FromHub::Failed { channel, errno: 16, step: "taken over".into() }).await;
    assert!(matches!(link.output.next().await, Some(Err(why)) if why.contains("taken over")));
    assert_eq!(joint.end(), Some(End::Failed { errno: 16, step: "taken over".into() }));
}

#[tokio::test]
async fn one_that_nobody_reads_holds_up_nobody_and_has_a_bound() {
    let (hub, mut scripted) = begin(AGES);
    let (loud, first) = opened(&hub, &mut scripted, "loud").await;
    let (quiet, second) = opened(&hub, &mut scripted, "quiet").await;
    let (mut unread, mut read) = (loud.link(), quiet.link());
    let piece = vec![7; 60_000];
    for _ in 0..200 {
        scripted.say(FromHub::Data { channel: first, bytes: &piece }).await;
        scripted.say(FromHub::Data { channel: second, bytes: b"x" }).await;
        assert_eq!(read.output.next().await, Some(Ok("x".into())));
    }
    // What came within the bound is whole; then the link ends.
    let mut bytes = 0;
    let why = loop {
        match unread.output.next().await {
            Some(Ok(piece)) => bytes += piece.len(),
            Some(Err(why)) => break why,
            None => panic!("an end is told"),
        }
    };
    assert!(why.contains("window") && bytes > 8_000_000 && bytes <= 8 << 20, "{why} {bytes}");
}

#[tokio::test]
async fn with_the_stream_every_link_ends_and_nothing_waits_for_ever() {
    let (hub, mut scripted) = begin(AGES);
    let (joint, _) = opened(&hub, &mut scripted, "one").await;
    let mut link = joint.link();
    let (opening, killing) = (hub.open("two"), hub.kill("three"));
    let (opening, killing, reason, ()) = tokio::join!(opening, killing, hub.ended(), async {
        scripted.hear().await;
        scripted.hear().await;
        drop(scripted);
    });
    assert!(matches!(opening, Err(Failed::Cut(_))) && killing.is_err() && !reason.is_empty());
    assert!(matches!(link.output.next().await, Some(Err(_))));
    assert!(matches!(joint.end(), Some(End::Cut(_))) && !hub.is_fresh());
    assert!(matches!(hub.attach("one").await, Err(Failed::Cut(_))));

    // The same when it says what no hub says, or hangs up with a reason.
    let (hub, mut scripted) = begin(AGES);
    scripted.write.write_all(&[0xff; 64]).await.expect("writes");
    assert!(hub.ended().await.contains("envelope"));
    let (hub, mut scripted) = begin(AGES);
    scripted.say(FromHub::Fault { text: "too old".into() }).await;
    assert!(hub.ended().await.contains("too old"));
}

#[tokio::test(start_paused = true)]
async fn one_that_nobody_uses_ends_and_one_that_is_old_takes_nothing_new() {
    let (hub, mut scripted) = begin(AGES);
    let (joint, channel) = opened(&hub, &mut scripted, "one").await;
    tokio::time::sleep(AGES.idle * 3).await;
    assert!(hub.is_fresh(), "it is in use");
    drop(joint);
    let left = Instant::now();
    assert_eq!(scripted.hear().await, Heard::Leave(channel));
    assert_eq!(scripted.hear().await, Heard::End);
    assert!(left.elapsed() >= AGES.idle && left.elapsed() < AGES.idle * 2, "{:?}", left.elapsed());
    assert!(matches!(hub.open("two").await, Err(Failed::Cut(_))));

    let (hub, mut scripted) = begin(AGES);
    let (joint, channel) = opened(&hub, &mut scripted, "one").await;
    tokio::time::sleep(AGES.most + Duration::from_secs(1)).await;
    assert!(!hub.is_fresh());
    let mut link = joint.link();
    scripted.say(FromHub::Data { channel, bytes: b"still" }).await;
    assert_eq!(link.output.next().await, Some(Ok("still".into())));
    drop((joint, link));
    let left = Instant::now();
    assert_eq!(scripted.hear().await, Heard::Leave(channel));
    assert_eq!(scripted.hear().await, Heard::End);
    assert!(left.elapsed() < Duration::from_secs(5), "{:?}", left.elapsed());
}

#[tokio::test]
async fn a_hub_that_does_not_read_makes_writers_wait_and_all_of_it_arrives() {
    let (hub, mut scripted) = begin(AGES);
    let (joint, channel) = opened(&hub, &mut scripted, "one").await;
    let mut link = joint.link();
    let all: Vec<u8> = (0..2_000_000u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    let sent = all.clone();
    let (_, got) = tokio::join!(async { link.input.write_all(&sent).await.expect("writes") }, async {
        let mut got = Vec::new();
        while got.len() < all.len() {
            match scripted.hear().await {
                Heard::Data(of, bytes) => {
                    assert_eq!(of, channel);
                    got.extend_from_slice(&bytes);
                }
                other => panic!("{other:?}"),
            }
        }
        got
    });
    assert!(got == all);
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_answer_is_given_up() {
    let (hub, mut scripted) = begin(AGES);
    let (joint, _) = opened(&hub, &mut scripted, "one").await;
    let began = Instant::now();
    assert!(matches!(hub.attach("two").await, Err(Failed::Cut(why)) if why.contains("did not answer")));
    assert!(began.elapsed() >= ANSWER && began.elapsed() < ANSWER * 2);
    // All of its jobs look for another connection.
    assert!(matches!(joint.end(), Some(End::Cut(_))) && !hub.is_fresh());
    assert!(hub.kill("one").await.is_err());
    let ended = async { while scripted.hear().await != Heard::End {} };
    tokio::time::timeout(Duration::from_secs(5), ended).await.expect("the stream is ended");
}

#[tokio::test(start_paused = true)]
async fn a_job_that_takes_long_to_end_costs_no_other_one_its_connection() {
    let (hub, mut scripted) = begin(AGES);
    let (joint, _) = opened(&hub, &mut scripted, "one").await;
    let (killed, ()) = tokio::join!(hub.kill("big"), async {
        assert_eq!(scripted.hear().await, Heard::Kill("big".into()));
        for _ in 0..3 {
            assert_eq!(scripted.hear().await, Heard::List);
            scripted.say(FromHub::Names { more: false, names: vec!["one".into()] }).await;
        }
        scripted.say(FromHub::Gone { name: "big".into() }).await;
    });
    assert_eq!((killed, joint.end(), hub.is_fresh()), (Ok(()), None, true));

    // Only who asked gives up in the end, and nothing of that is kept.
    let kill = hub.kill("endless");
    let answering = async {
        loop {
            if scripted.hear().await == Heard::List {
                scripted.say(FromHub::Names { more: false, names: vec![] }).await;
            }
        }
    };
    let killed = tokio::select! {
        killed = kill => killed,
        () = answering => unreachable!("it never ends"),
    };
    assert!(killed.is_err_and(|why| why.contains("has not been ended")));
    assert_eq!((joint.end(), hub.is_fresh(), hub.0.state().kills.len()), (None, true, 0));

    // One that is stuck is told from one that works.
    assert!(hub.kill("one").await.is_err_and(|why| why.contains("did not answer")));
    assert!(matches!(joint.end(), Some(End::Cut(_))) && !hub.is_fresh());
}

#[tokio::test]
async fn who_asks_for_an_end_and_goes_is_forgotten() {
    let (hub, mut scripted) = begin(AGES);
    let both = async { tokio::join!(hub.kill("one"), hub.kill("one")) };
    {
        let mut dropped = Box::pin(hub.kill("one"));
        assert!(futures_util::poll!(&mut dropped).is_pending());
        assert_eq!(hub.0.state().kills["one"].len(), 1);
    }
    assert!(hub.0.state().is_unused());
    let (killed, ()) = tokio::join!(both, async {
        for _ in 0..3 {
            assert_eq!(scripted.hear().await, Heard::Kill("one".into()));
        }
        scripted.say(FromHub::Gone { name: "one".into() }).await;
    });
    assert_eq!(killed, (Ok(()), Ok(())));
}

#[tokio::test]
async fn a_number_that_is_anothers_by_now_is_left_alone() {
    let (hub, mut scripted) = begin(AGES);
    let (old, channel) = opened(&hub, &mut scripted, "old").await;
    let mut link = old.link();
    scripted.say(FromHub::Ended { channel, name: "old".into(), code: 0 }).await;
    old.ended(Duration::from_secs(5)).await.expect("has ended");
    hub.0.state().last = channel - 1;
    let (new, again) = opened(&hub, &mut scripted, "new").await;
    assert_eq!(again, channel);
    assert!(link.input.write_all(b"old").await.is_err(), "its channel has ended");
    drop((link, old));
    new.link().input.write_all(b"new").await.expect("its channel is there");
    assert_eq!(scripted.hear().await, Heard::Data(channel, b"new".to_vec()), "and nobody has left it");
}
