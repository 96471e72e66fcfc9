//! Where a name leads: asked once for each connection, by the agent and never by the cell.

use super::Outside;
use super::judge::No;
use crate::protocol::wire::EgressFault;
use crate::supervise;
use simple_dns::rdata::RData;
use simple_dns::{CLASS, Name, Packet, PacketFlag, QCLASS, QTYPE, Question, RCODE, TYPE};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// A name with more leads to these.
const ADDRESSES_MAX: usize = 32;
/// A question to a name server is asked again after so long.
const AGAIN: Duration = Duration::from_secs(2);
const TRIES: u32 = 3;

impl Outside {
    /// The addresses of a name, at least one. The deadline is the caller's. `share` is what its job may have of all lookups, so that one
    /// whose names are never answered holds up itself.
    pub(super) async fn lookup(&self, name: &str, share: &Arc<Semaphore>) -> Result<Vec<IpAddr>, No> {
        // Held until the answer is there, also when nobody waits for it any more.
        let own = Arc::clone(share).acquire_owned().await;
        let permit = (own, Arc::clone(&self.lookups).acquire_owned().await);
        let found = match self.settings.resolver {
            Some(server) => {
                let (v4, v6) = tokio::join!(ask(server, name, TYPE::A), ask(server, name, TYPE::AAAA));
                drop(permit);
                match (v4, v6) {
                    (Ok(mut all), Ok(more)) => {
                        all.extend(more);
                        Ok(all)
                    }
                    (Ok(some), Err(_)) | (Err(_), Ok(some)) if !some.is_empty() => Ok(some),
                    (Err(error), _) | (_, Err(error)) => Err(error),
                }
            }
            None => {
                let name = name.to_owned();
                supervise::blocking(move || {
                    let _permit = permit;
                    (name.as_str(), 0).to_socket_addrs().map(|all| all.map(|one| one.ip()).collect::<Vec<_>>())
                })
                .await
            }
        };
        let mut all = found.map_err(|error| {
            No::new(EgressFault::NoName, "name_not_found", format!("the name cannot be looked up: {error}"))
        })?;
        all.dedup();
        all.truncate(ADDRESSES_MAX);
        match all.is_empty() {
            true => Err(No::new(EgressFault::NoName, "name_not_found", "the name has no address")),
            false => Ok(all),
        }
    }
}

/// Asks a name server for one kind of address. A name that does not exist has none.
async fn ask(server: SocketAddr, name: &str, kind: TYPE) -> io::Result<Vec<IpAddr>> {
    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut id = [0; 2];
    getrandom::fill(&mut id).map_err(|_| bad("no random number"))?;
    let id = u16::from_le_bytes(id);
    let mut packet = Packet::new_query(id);
    packet.set_flags(PacketFlag::RECURSION_DESIRED);
    let asked = Name::new(name).map_err(|_| bad("no name server takes such a name"))?;
    packet.questions.push(Question::new(asked, QTYPE::TYPE(kind), QCLASS::CLASS(CLASS::IN), false));
    let question = packet.build_bytes_vec().map_err(|_| bad("no name server takes such a name"))?;
    // A port of its own, and connected: only answers of that server come in.
    let local: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(server).await?;
    let mut buffer = vec![0; 4096];
    for _ in 0..TRIES {
        socket.send(&question).await?;
        let answer = async {
            loop {
                let count = socket.recv(&mut buffer).await?;
                // What is no answer to this question is passed over: it may be somebody's guess.
                if let Some(answer) = read(&buffer[..count], id, name) {
                    return io::Result::Ok(answer);
                }
            }
        };
        match timeout(AGAIN, answer).await {
            Err(_) => {}
            Ok(Err(error)) => return Err(error),
            Ok(Ok(Answer::Addresses(all))) => return Ok(all),
            Ok(Ok(Answer::Refused)) => return Err(bad("the name server does not answer for it")),
            Ok(Ok(Answer::Cut)) => return ask_at_length(server, &question, id, name).await,
        }
    }
    Err(io::Error::new(io::ErrorKind::TimedOut, "the name server does not answer"))
}

/// The same over TCP, for an answer that does not fit a datagram.
async fn ask_at_length(server: SocketAddr, question: &[u8], id: u16, name: &str) -> io::Result<Vec<IpAddr>> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(question.len()).unwrap_or_default();
    stream.write_all(&[&length.to_be_bytes(), question].concat()).await?;
    let mut buffer = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut buffer).await?;
    match read(&buffer, id, name) {
        Some(Answer::Addresses(all)) => Ok(all),
        _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the name server does not answer for it")),
    }
}

#[derive(Debug, PartialEq)]
enum Answer {
    Addresses(Vec<IpAddr>),
    Refused,
    Cut,
}

/// An answer, if it is one to this question.
fn read(bytes: &[u8], id: u16, name: &str) -> Option<Answer> {
    let packet = Packet::parse(bytes).ok()?;
    let same = |question: &Question<'_>| question.qname.to_string().trim_end_matches('.').eq_ignore_ascii_case(name);
    if packet.id() != id || !packet.has_flags(PacketFlag::RESPONSE) || !packet.questions.first().is_some_and(same) {
        return None;
    }
    if packet.has_flags(PacketFlag::TRUNCATION) {
        return Some(Answer::Cut);
    }
    match packet.rcode() {
        RCODE::NoError | RCODE::NameError => {}
        _ => return Some(Answer::Refused),
    }
    let address = |data: &RData<'_>| match data {
        RData::A(one) => Some(IpAddr::V4(Ipv4Addr::from_bits(one.address))),
        RData::AAAA(one) => Some(IpAddr::V6(Ipv6Addr::from_bits(one.address))),
        _ => None,
    };
    Some(Answer::Addresses(packet.answers.iter().filter_map(|one| address(&one.rdata)).collect()))
}
