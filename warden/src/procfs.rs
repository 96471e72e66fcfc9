//! What the kernel's text files in /proc say. Pure: texts in, values out; what does not parse is not there.

/// The value of a line of /proc/self/status.
pub(crate) fn status_line<'a>(status: &'a str, key: &str) -> Option<&'a str> {
    status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(str::trim)
}

/// Real, effective, saved and file system id as one number where they are the same, all of them where not.
pub(crate) fn one_id(ids: &str) -> String {
    let all: Vec<&str> = ids.split_whitespace().collect();
    if all.windows(2).all(|pair| pair[0] == pair[1]) {
        all.first().copied().unwrap_or_default().to_owned()
    } else {
        all.join(",")
    }
}

/// A line of /proc/self/mountinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mount<'a> {
    /// The folder of its file system that is mounted.
    pub(crate) root: &'a str,
    /// Where; blanks in it are written `\040` by the kernel.
    pub(crate) place: &'a str,
    /// Options of this mount.
    pub(crate) options: &'a str,
    pub(crate) kind: &'a str,
    /// Options of the file system.
    pub(crate) super_options: &'a str,
}

impl Mount<'_> {
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|one| one == option)
    }

    pub(crate) fn writable(&self) -> bool {
        !self.has("ro") && self.super_options.split(',').next() != Some("ro")
    }
}

/// The mounts in force: of several at one place, the last.
pub(crate) fn mounts(mountinfo: &str) -> Vec<Mount<'_>> {
    let mut found: Vec<Mount<'_>> = Vec::new();
    for mount in mountinfo.lines().filter_map(mount) {
        found.retain(|before| before.place != mount.place);
        found.push(mount);
    }
    found
}

fn mount(line: &str) -> Option<Mount<'_>> {
    let (front, back) = line.split_once(" - ")?;
    let mut front = front.split(' ').skip(3);
    let mut back = back.split(' ');
    Some(Mount {
        root: front.next()?,
        place: front.next()?,
        options: front.next()?,
        kind: back.next()?,
        super_options: back.nth(1)?,
    })
}

/// Whether the host can be reached over the network, from /proc/net/dev. Any way out may lead there: nobody has proved that it does not.
pub(crate) fn host_reachable(dev: Option<&str>) -> &'static str {
    if dev.is_some_and(|dev| interfaces(dev) == ["lo"]) { "no" } else { "assumed" }
}

/// Names of network interfaces, from /proc/net/dev, sorted.
pub(crate) fn interfaces(dev: &str) -> Vec<&str> {
    let mut names: Vec<&str> =
        dev.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    names.sort_unstable();
    names
}

/// Whether a namespace is the first one, that of the machine: `own` or `initial`, and the number of the rest. From the target of
/// a link in /proc/self/ns, `ipc:[4026531839]`. The kernel gives the first ones of these kinds fixed numbers
/// (include/linux/proc_ns.h); those of the others are not known beforehand.
pub(crate) fn namespace(link: &str) -> Option<String> {
    let (kind, number) = link.strip_suffix(']')?.split_once(":[")?;
    let number: u32 = number.parse().ok()?;
    let first = match kind {
        "ipc" => 0xefff_ffff,
        "uts" => 0xefff_fffe,
        "user" => 0xefff_fffd,
        "pid" => 0xefff_fffc,
        "cgroup" => 0xefff_fffb,
        "time" => 0xefff_fffa,
        _ => return Some(number.to_string()),
    };
    Some(if number == first { "initial" } else { "own" }.to_owned())
}

/// What the calls of a job reach: `gvisor` is a kernel of its own in a process of the host, `linux` the host's. From /proc/version.
pub(crate) fn kernel_kind(version: &str) -> &'static str {
    // The line of the release that was run (2022), and a name that one with another line would have to have. Others are held to Linux.
    let gvisor = version.contains("gvisor") || version.contains("#1 SMP Sun Jan 10 15:06:54 PST 2016");
    if gvisor { "gvisor" } else { "linux" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_one_only_where_they_agree() {
        assert_eq!(one_id("7\t7\t7\t7"), "7");
        assert_eq!(one_id("7\t0\t7\t7"), "7,0,7,7");
        assert_eq!(one_id(""), "");
    }

    #[test]
    fn status_lines_are_found_by_their_whole_name() {
        let status = "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\nCapEff:\t00\n";
        assert_eq!(status_line(status, "Seccomp"), Some("2"));
        assert_eq!(status_line(status, "Cap"), None);
    }

    #[test]
    fn the_last_mount_at_a_place_counts() {
        let found = mounts(
            "1 0 0:1 / / rw,relatime - overlay overlay rw,lowerdir=/x\n\
             2 1 0:1 / / ro,relatime master:4 - overlay overlay rw,lowerdir=/x\n\
             3 1 0:3 / /a\\040b rw,nosuid,nodev shared:1 master:2 - tmpfs tmpfs rw,size=65536k\n\
             4 1 8:1 /v /v rw - ext4 /dev/vda ro,errors=x\n\
             torn line\n\
             5 1 8:1 / /w rw - ext4 /dev/vda\n",
        );
        let places: Vec<_> = found.iter().map(|mount| (mount.place, mount.kind, mount.writable())).collect();
        assert_eq!(places, [("/", "overlay", false), ("/a\\040b", "tmpfs", true), ("/v", "ext4", false)]);
        assert!(found[1].has("nodev") && !found[1].has("nod"));
        assert_eq!(found[2].root, "/v");
    }

    #[test]
    fn namespaces_are_the_machines_or_not() {
        assert_eq!(namespace("ipc:[4026531839]").as_deref(), Some("initial"));
        assert_eq!(namespace("pid:[4026531836]").as_deref(), Some("initial"));
        assert_eq!(namespace("pid:[4026532201]").as_deref(), Some("own"));
        assert_eq!(namespace("net:[4026531840]").as_deref(), Some("4026531840"));
        assert_eq!((namespace("ipc"), namespace("ipc:[x]")), (None, None));
    }

    #[test]
    fn a_kernel_of_its_own_is_known() {
        assert_eq!(kernel_kind("Linux version 4.4.0 #1 SMP Sun Jan 10 15:06:54 PST 2016\n"), "gvisor");
        assert_eq!(kernel_kind("Linux version 4.19.0-gvisor #1 SMP"), "gvisor");
        assert_eq!(kernel_kind("Linux version 4.4.0-210-generic (buildd@x) #242-Ubuntu SMP"), "linux");
    }

    #[test]
    fn interfaces_are_named_and_sorted() {
        let dev = "Inter-|   Receive\n face |bytes\n    lo: 1 2\n  eth0:1 2\n";
        assert_eq!(interfaces(dev), ["eth0", "lo"]);
        assert_eq!((host_reachable(Some(dev)), host_reachable(None)), ("assumed", "assumed"));
    }
}
