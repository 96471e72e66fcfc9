use super::*;
use proptest::prelude::*;

fn read(text: &str) -> Result<Inventory, crate::job::Problems> {
    Inventory::read(text, &usual_known_hosts(Path::new("/data")))
}

const GOOD: &str = "
hosts:
  web1: {address: 10.0.0.1, login: deploy, credential: deploy, jump: [inner]}
  web2: {address: '[fd00::1]:2222', login: deploy, credential: ci, known_as: Web2.Example.com}
  inner: {address: inner, port: 222, login: j, credential: agent, jump: [bastion]}
  bastion: {address: bastion.example.com, login: j, credential: agent, fingerprints: ['SHA256:uNiVztksCsDhcc0u9e8BrrCL6hUFRzaj7JKhVh8pEqM']}
  bare: {address: 10.0.0.9}
groups: {web: [web1, web2]}
credentials:
  deploy: {key_file: /k/deploy, passphrase_file: /k/pass, certificate_file: /k/deploy-cert.pub}
  ci: {key: {env: CI_KEY}}
  agent: {agent_socket: /run/agent.sock}
";

#[test]
fn a_destination_comes_to_a_route() {
    let inventory = read(GOOD).expect("is good");
    let to = |host| Destination { host, ..Destination::default() };
    let route = inventory.route(&to("web1")).expect("a route");
    assert_eq!(
        (route.host.as_str(), route.port, route.login.as_str(), route.credential.as_str()),
        ("10.0.0.1", 22, "deploy", "deploy")
    );
    let inner = route.jump.expect("a jump host");
    let bastion = inner.jump.as_ref().expect("another");
    assert_eq!(
        (inner.name.as_str(), inner.port, bastion.name.as_str(), bastion.fingerprints.len()),
        ("inner", 222, "bastion", 1)
    );
    let route = inventory.route(&to("web2")).expect("a route");
    assert_eq!(
        (route.host.as_str(), route.port, route.known_as.as_deref()),
        ("fd00::1", 2222, Some("web2.example.com"))
    );
    assert_eq!(route.to_string(), "web2 ([fd00::1]:2222)");
    let jump = ["bastion".to_owned()];
    let given =
        Destination { host: "web1", port: Some(23), login: Some("root"), credential: Some("ci"), jump: Some(&jump) };
    let route = inventory.route(&given).expect("a route");
    assert_eq!((route.port, route.login.as_str(), route.credential.as_str()), (23, "root", "ci"));
    assert_eq!(route.jump.expect("a jump host").name, "bastion");
    assert_eq!((inventory.group("web").expect("a group").len(), inventory.hosts().count()), (2, 5));
    assert_eq!(inventory.known_files(), [Path::new("/etc/ssh/ssh_known_hosts"), Path::new("/data/known_hosts")]);

    for (to, wanted) in [
        (to("web3"), "the inventory has no host `web3`; did you mean `web1`?"),
        (to("web"), "`web` is a group of the inventory, and no host; name its hosts: web1,web2"),
        (to("bare"), "nothing says who logs in at bare"),
        (Destination { host: "bare", login: Some("x"), ..Destination::default() }, "nothing says what opens bare"),
        (
            Destination { host: "web1", credential: Some("c1"), ..Destination::default() },
            "has no credential `c1` for web1; did you mean `ci`?",
        ),
        (
            Destination { host: "web1", jump: Some(&["x".to_owned()]), ..Destination::default() },
            "jump host `x` is not in the inventory",
        ),
        (
            Destination { host: "web1", jump: Some(&["bare".to_owned()]), ..Destination::default() },
            "jump host bare has no login",
        ),
    ] {
        let said = inventory.route(&to).expect_err(wanted).to_string();
        assert!(said.contains(wanted), "{said}");
    }
}

#[test]
fn a_host_of_no_inventory_is_reached_where_that_is_allowed() {
    let direct = read(&format!("{GOOD}direct: true\n")).expect("is good");
    let to = |host| Destination { host, login: Some("me"), credential: Some("ci"), ..Destination::default() };
    let route = direct.route(&to("other.example.com:23")).expect("a route");
    assert_eq!((route.host.as_str(), route.port, route.login.as_str()), ("other.example.com", 23, "me"));
    assert!(direct.route(&to("-oProxyCommand=x")).expect_err("is none").0.contains("is no name or address"));
    assert!(direct.route(&Destination { host: "other", ..Destination::default() }).is_err());
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let bad = "
hosts:
  web1: {address: 'a b', port: 0, login: '-x', credential: nobody, jump: [web1, none], fingerprints: [MD5:aa], known_as: 'x y', colour: red}
  ring1: {address: a, login: x, credential: deploy, jump: [ring2]}
  ring2: {address: a, login: x, credential: deploy, jump: [ring1]}
  bare: {address: a}
  over: {address: a, jump: [bare]}
  'no name': {address: a}
  empty: {fingerprints: []}
groups: {web: [webb, 3]}
credentials:
  deploy: {key_file: key}
  two: {key_file: /k, agent_socket: /s}
  none: {}
  pass: {password_file: /p}
  from: {key: {env: A, file: /b}}
known_hosts: [known]
direct: perhaps
extra: 1
";
    let problems = read(bad).expect_err("is bad");
    let told: Vec<String> = problems.iter().map(ToString::to_string).collect();
    for wanted in [
        "hosts.web1.address: `a b` is not valid",
        "hosts.web1.port: is no port",
        "hosts.web1.login: is no login",
        "hosts.web1.fingerprints[0]: `MD5:aa` is no SHA-256 fingerprint",
        "hosts.web1.known_as: `x y` is no name",
        "hosts.web1.colour: unknown key",
        "hosts.ring1.credential: `deploy` is no credential",
        "hosts.ring1.jump: leads back to itself",
        "hosts.over.jump[0]: bare has no login or no credential",
        "hosts.no name: is no name",
        "hosts.empty.address: is missing",
        "hosts.empty.fingerprints: is empty",
        "groups.web[0]: `webb` is no host",
        "groups.web[1]: is a number",
        "credentials.deploy.key_file: `key` is no absolute path",
        "credentials.two: does not say one way to log in",
        "credentials.none: does not say one way to log in",
        "credentials.pass.password_file: is a password, and the inventory does not allow passwords",
        "credentials.from.key: does not say one place",
        "known_hosts: `known` is no absolute path",
        "direct: is neither true nor false",
        "extra: unknown key",
    ] {
        assert!(told.iter().any(|line| line.starts_with(wanted)), "{wanted} is not in:\n{}", told.join("\n"));
    }
    assert!(read("- a").is_err() && read("hosts: {").is_err());
    assert!(read("passwords: true\ncredentials: {pass: {password_file: /p}}").is_ok());
}

#[test]
fn a_new_file_holds_and_a_bad_one_leaves_the_last_good_one_in_force() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("inventory.yaml");
    std::fs::write(&path, "hosts: {a: {address: a}}").expect("writes");
    let live = LiveInventory::load(&path, dir.path()).expect("loads");
    assert_eq!(live.look(false), Found::Same);
    std::fs::write(&path, "hosts: {b: {address: b}, c: {address: c}}").expect("writes");
    assert_eq!((live.look(false), live.current().hosts().count()), (Found::Loaded, 2));
    std::fs::write(&path, "hosts: 3").expect("writes");
    let Found::Refused(reason) = live.look(false) else { panic!("is bad") };
    assert!(reason.contains("inventory.yaml: hosts: is a number"), "{reason}");
    assert_eq!((live.look(false), live.refused(), live.current().hosts().count()), (Found::Same, Some(reason), 2));
    std::fs::remove_file(&path).expect("removes");
    assert!(matches!(live.look(false), Found::Refused(_)));
    std::fs::write(&path, "{}").expect("writes");
    assert_eq!((live.look(false), live.refused(), live.current().hosts().count()), (Found::Loaded, None, 0));
}

proptest! {
    #[test]
    fn no_text_panics_and_what_is_an_address_is_one_again(text in "\\PC{0,40}") {
        let _ = read(&text);
        if let Ok((host, port)) = address(&text) {
            prop_assert_eq!(address(&crate::executor::ssh::route::address(&host, port.unwrap_or(23))), Ok((host, Some(port.unwrap_or(23)))).map(|(host, port)| match port { Some(22) => (host, None), other => (host, other) }));
        }
    }
}
