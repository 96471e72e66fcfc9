/* Tries, from inside a cell, calls that a profile of seccomp/ must refuse, and calls that it must not.
 *
 * scripts/seccomp-check.sh compiles it static and runs it twice under each profile, whose name is its argument: as a job runs, and once
 * more as root with every capability ("privileged ids"), so that a refusal can only be the filter's and not the kernel's own check.
 * Therefore each try is harmless where it would get through: bad pointers, bad descriptors, magic numbers that are wrong.
 * Each runs in a child of its own, because some refusals kill. One line a try; exit code 1 if any differs from what it
 * must be. x86-64 Linux.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What must happen. PASSES: it reaches the kernel, which may then say anything but EPERM, ENOSYS or death. SAME: what the default does. */
enum expect { SAME, REFUSED, NOT_IMPLEMENTED, NO_FAMILY, KILLED, PASSES, SUCCEEDS };

/* Raw calls: libc would check, convert or hide. */
static long call(long nr, long a, long b, long c, long d, long e, long f) {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

/* The 32-bit entry of the kernel, by which a 64-bit filter is often walked around. */
static long call32(long nr, long a, long b) {
  long result;
  __asm__ volatile("int $0x80" : "=a"(result) : "a"(nr), "b"(a), "c"(b) : "r8", "r9", "r10", "r11", "memory");
  return result;
}

struct try {
  const char *name;
  enum expect expect;
  long nr, a, b, c, d, e, f;
  enum expect strict, offline; /* Where these differ from the default. */
  bool trips;                  /* Told to the warden under the tripwire; without one, as here, not implemented. */
  bool dangerous;              /* Although it passes: for the count of what reaches the kernel. What must be refused is so anyway. */
};

/* The profiles, and how many dangerous tries may reach the kernel. */
static const struct profile {
  const char *name;
  unsigned most;
} profiles[] = {{"default", 24}, {"offline", 24}, {"strict", 12}, {"tripwire", 24}};

#define HIGH 0x100000000L /* Above what the kernel reads of a 32-bit argument. */
#define X32 0x40000000L
#define BAD_POINTER 1L
#define CALL32 (-1L) /* nr of tries that go by int 0x80: a is the number there, b and c its arguments. */

static const struct try tries[] = {
    /* Namespaces, mounts, other people's processes. */
    {"unshare user", REFUSED, SYS_unshare, CLONE_NEWUSER, .trips = true},
    {"unshare files only", REFUSED, SYS_unshare, CLONE_FILES},
    {"clone new user namespace", REFUSED, SYS_clone, CLONE_NEWUSER | SIGCHLD, .trips = true},
    {"clone new net namespace", REFUSED, SYS_clone, CLONE_NEWNET | SIGCHLD, .trips = true},
    {"clone new pid namespace", REFUSED, SYS_clone, CLONE_NEWPID | SIGCHLD, .trips = true},
    {"clone new cgroup namespace", REFUSED, SYS_clone, CLONE_NEWCGROUP | SIGCHLD, .trips = true},
    {"clone3", NOT_IMPLEMENTED, SYS_clone3, BAD_POINTER, 88},
    {"setns", REFUSED, SYS_setns, -1, 0, .trips = true},
    {"mount", REFUSED, SYS_mount, BAD_POINTER, BAD_POINTER, BAD_POINTER, .trips = true},
    {"umount2", REFUSED, SYS_umount2, BAD_POINTER, 0, .trips = true},
    {"pivot_root", REFUSED, SYS_pivot_root, BAD_POINTER, BAD_POINTER, .trips = true},
    {"chroot", REFUSED, SYS_chroot, BAD_POINTER, .trips = true},
    {"open_tree", REFUSED, 428, -1, BAD_POINTER, 0, .trips = true},
    {"move_mount", REFUSED, 429, -1, BAD_POINTER, -1, BAD_POINTER, .trips = true},
    {"fsopen", REFUSED, 430, BAD_POINTER, 0, .trips = true},
    {"fsconfig", REFUSED, 431, -1, 0, .trips = true},
    {"fsmount", REFUSED, 432, -1, 0, .trips = true},
    {"fspick", REFUSED, 433, -1, BAD_POINTER, 0, .trips = true},
    {"mount_setattr", REFUSED, 442, -1, BAD_POINTER, 0, BAD_POINTER, 32, .trips = true},
    {"ptrace traceme", REFUSED, SYS_ptrace, 0},
    {"ptrace attach to 1", REFUSED, SYS_ptrace, 16, 1, .trips = true},
    {"process_vm_readv", REFUSED, SYS_process_vm_readv, 1, BAD_POINTER, 1, BAD_POINTER, 1, 0, .trips = true},
    {"process_vm_writev", REFUSED, SYS_process_vm_writev, 1, BAD_POINTER, 1, BAD_POINTER, 1, 0, .trips = true},
    {"process_madvise", REFUSED, 440, -1, BAD_POINTER, 1, 0, .trips = true},
    {"process_mrelease", REFUSED, 448, -1, 0},
    {"kcmp", REFUSED, SYS_kcmp, 1, 1, 99},
    {"pidfd_getfd", REFUSED, 438, -1, 0, 0, .trips = true},
    {"get_robust_list of 1", REFUSED, SYS_get_robust_list, 1, BAD_POINTER, BAD_POINTER},
    {"move_pages", REFUSED, SYS_move_pages, 1, 0, BAD_POINTER, 0, BAD_POINTER, 0},
    {"migrate_pages", REFUSED, SYS_migrate_pages, 1, 0, BAD_POINTER, BAD_POINTER},
    /* Wide kernel interfaces. */
    {"bpf", REFUSED, SYS_bpf, 0, BAD_POINTER, 48, .trips = true},
    {"perf_event_open", REFUSED, SYS_perf_event_open, BAD_POINTER, 0, -1, -1, 0, .trips = true},
    {"keyctl", REFUSED, SYS_keyctl, 0, -3, 0},
    {"add_key", REFUSED, SYS_add_key, BAD_POINTER, BAD_POINTER, BAD_POINTER, 0, -3},
    {"request_key", REFUSED, SYS_request_key, BAD_POINTER, BAD_POINTER, BAD_POINTER, 0},
    {"userfaultfd", NOT_IMPLEMENTED, SYS_userfaultfd, 1},
    {"io_uring_setup", NOT_IMPLEMENTED, 425, 1, BAD_POINTER},
    {"io_uring_enter", NOT_IMPLEMENTED, 426, -1, 0, 0, 0},
    {"io_uring_register", NOT_IMPLEMENTED, 427, -1, 0, 0, 0},
    {"io_setup", NOT_IMPLEMENTED, SYS_io_setup, 1, BAD_POINTER},
    {"io_submit", NOT_IMPLEMENTED, SYS_io_submit, 0, 1, BAD_POINTER},
    {"fanotify_init", REFUSED, SYS_fanotify_init, 0, 0, .trips = true},
    {"open_by_handle_at", REFUSED, SYS_open_by_handle_at, -1, BAD_POINTER, 0, .trips = true},
    {"name_to_handle_at", REFUSED, SYS_name_to_handle_at, -1, BAD_POINTER, BAD_POINTER, BAD_POINTER, 0},
    {"lookup_dcookie", REFUSED, SYS_lookup_dcookie, 0, BAD_POINTER, 0, .trips = true},
    {"quotactl", REFUSED, SYS_quotactl, 0, BAD_POINTER, 0, BAD_POINTER, .trips = true},
    {"quotactl_fd", REFUSED, 443, -1, 0, 0, BAD_POINTER, .trips = true},
    {"vmsplice", REFUSED, SYS_vmsplice, -1, BAD_POINTER, 1, 0},
    {"tee", REFUSED, SYS_tee, -1, -1, 1, 0},
    {"remap_file_pages", REFUSED, SYS_remap_file_pages, 0, 0, 0, 0, 0},
    {"memfd_secret", REFUSED, 447, -1},
    {"modify_ldt", REFUSED, SYS_modify_ldt, 0, BAD_POINTER, 0, .trips = true},
    {"set_mempolicy", REFUSED, SYS_set_mempolicy, 99, 0, 0},
    {"mbind", REFUSED, SYS_mbind, 1, 1, 99, 0, 0, 0},
    {"mq_open", REFUSED, SYS_mq_open, BAD_POINTER, 0, 0, 0},
    /* The machine itself. */
    {"reboot", REFUSED, SYS_reboot, 1, 2, 3, 0, .trips = true},
    {"kexec_load", REFUSED, SYS_kexec_load, 0, 99, BAD_POINTER, 0, .trips = true},
    {"kexec_file_load", REFUSED, SYS_kexec_file_load, -1, -1, 0, BAD_POINTER, 0, .trips = true},
    {"init_module", REFUSED, SYS_init_module, BAD_POINTER, 1, BAD_POINTER, .trips = true},
    {"finit_module", REFUSED, SYS_finit_module, -1, BAD_POINTER, 0, .trips = true},
    {"delete_module", REFUSED, SYS_delete_module, BAD_POINTER, 0, .trips = true},
    {"swapon", REFUSED, SYS_swapon, BAD_POINTER, 0, .trips = true},
    {"swapoff", REFUSED, SYS_swapoff, BAD_POINTER, .trips = true},
    {"acct", REFUSED, SYS_acct, BAD_POINTER, .trips = true},
    {"syslog read", REFUSED, SYS_syslog, 3, BAD_POINTER, 1},
    {"iopl", REFUSED, SYS_iopl, 99, .trips = true},
    {"ioperm", REFUSED, SYS_ioperm, -1, 1, 1, .trips = true},
    {"settimeofday", REFUSED, SYS_settimeofday, BAD_POINTER, 0, .trips = true},
    {"clock_settime", REFUSED, SYS_clock_settime, 0, BAD_POINTER, .trips = true},
    {"adjtimex", REFUSED, SYS_adjtimex, BAD_POINTER},
    {"sethostname", REFUSED, SYS_sethostname, BAD_POINTER, 1, .trips = true},
    {"setdomainname", REFUSED, SYS_setdomainname, BAD_POINTER, 1, .trips = true},
    {"uselib", REFUSED, SYS_uselib, BAD_POINTER},
    {"ustat", REFUSED, SYS_ustat, 0, BAD_POINTER},
    {"sysfs", REFUSED, SYS_sysfs, 3},
    {"setfsuid, asking only", REFUSED, SYS_setfsuid, -1},
    /* Sockets: the four families, and every known way around. */
    {"socket unix", SUCCEEDS, SYS_socket, 1, 1, 0},
    {"socket inet", SUCCEEDS, SYS_socket, 2, 1, 0, .offline = NO_FAMILY},
    {"socket netlink route", SUCCEEDS, SYS_socket, 16, 3, 0, .dangerous = true},
    {"socket unix, high bit", SUCCEEDS, SYS_socket, HIGH | 1, 1, 0},
    {"socket netlink sock_diag", REFUSED, SYS_socket, 16, 3, 4},
    {"socket netlink netfilter", REFUSED, SYS_socket, 16, 3, 12},
    {"socket netlink netfilter, high bit", REFUSED, SYS_socket, 16, 3, HIGH | 12},
    {"socket netlink audit", REFUSED, SYS_socket, 16, 3, 9},
    {"socket packet", REFUSED, SYS_socket, 17, 3, 0},
    {"socket key", REFUSED, SYS_socket, 15, 3, 2},
    {"socket rds", REFUSED, SYS_socket, 21, 5, 0},
    {"socket can", REFUSED, SYS_socket, 29, 3, 1},
    {"socket tipc", REFUSED, SYS_socket, 30, 5, 0},
    {"socket bluetooth", REFUSED, SYS_socket, 31, 3, 1},
    {"socket alg", REFUSED, SYS_socket, 38, 5, 0},
    {"socket alg, high bit", REFUSED, SYS_socket, HIGH | 38, 5, 0},
    {"socket vsock", REFUSED, SYS_socket, 40, 1, 0},
    {"socket vsock, high bit", REFUSED, SYS_socket, HIGH | 40, 1, 0},
    {"socket vsock, top bit", REFUSED, SYS_socket, (long)(1UL << 63 | 40), 1, 0},
    {"socket kcm", REFUSED, SYS_socket, 41, 2, 0},
    {"socket smc", REFUSED, SYS_socket, 43, 1, 0},
    {"socket xdp", REFUSED, SYS_socket, 44, 3, 0},
    {"socketpair tipc", REFUSED, SYS_socketpair, 30, 5, 0, BAD_POINTER},
    {"int 0x80 getpid", KILLED, CALL32, 20},
    {"int 0x80 socketcall", KILLED, CALL32, 102, 1, BAD_POINTER},
    {"int 0x80 unshare", KILLED, CALL32, 310, 0},
    {"x32 getpid", KILLED, X32 | SYS_getpid},
    {"x32 socket vsock", KILLED, X32 | SYS_socket, 40, 1, 0},
    {"x32 ptrace", KILLED, X32 | 521, 0},
    /* The warden is process 1 under the same uid. */
    {"prlimit of 1", REFUSED, SYS_prlimit64, 1, 7, 0, BAD_POINTER},
    {"prlimit of the parent", REFUSED, SYS_prlimit64, -2, 7, 0, BAD_POINTER},
    {"prlimit of 1, high bit", REFUSED, SYS_prlimit64, HIGH | 1, 7, 0, BAD_POINTER},
    {"prlimit of self", PASSES, SYS_prlimit64, 0, 7, 0, BAD_POINTER},
    {"setpriority of 1", REFUSED, SYS_setpriority, 0, 1, 19},
    {"setpriority of 1, high bits", REFUSED, SYS_setpriority, HIGH, HIGH | 1, 19},
    {"setpriority of a group", REFUSED, SYS_setpriority, 1, 0, 19},
    {"setpriority of a user", REFUSED, SYS_setpriority, 2, 0, 19},
    {"setpriority of self", SUCCEEDS, SYS_setpriority, 0, 0, 19},
    {"ioprio_set of 1", REFUSED, SYS_ioprio_set, 1, 1, 0x6000},
    {"ioprio_set of a user", REFUSED, SYS_ioprio_set, 3, 0, 0x6000},
    {"ioprio_set of self", SUCCEEDS, SYS_ioprio_set, 1, 0, 0x6000, .strict = REFUSED},
    {"sched_setaffinity of 1", REFUSED, SYS_sched_setaffinity, 1, 8, BAD_POINTER},
    {"sched_setscheduler of 1", REFUSED, SYS_sched_setscheduler, 1, 0, BAD_POINTER},
    {"sched_setparam of 1", REFUSED, SYS_sched_setparam, 1, BAD_POINTER},
    {"sched_setattr of 1", REFUSED, SYS_sched_setattr, 1, BAD_POINTER, 0},
    {"sched_setaffinity of self", PASSES, SYS_sched_setaffinity, 0, 8, BAD_POINTER, .strict = REFUSED},
    {"sched_setscheduler of self", PASSES, SYS_sched_setscheduler, 0, 0, BAD_POINTER, .strict = REFUSED},
    /* ioctl: the three, with and without high bits, and both neighbours of each. The descriptor is bad: EBADF is a pass. */
    {"ioctl TIOCSTI", REFUSED, SYS_ioctl, -1, 0x5412, BAD_POINTER},
    {"ioctl TIOCLINUX", REFUSED, SYS_ioctl, -1, 0x541C, BAD_POINTER},
    {"ioctl TIOCSETD", REFUSED, SYS_ioctl, -1, 0x5423, BAD_POINTER},
    {"ioctl TIOCSTI, high bit", REFUSED, SYS_ioctl, -1, HIGH | 0x5412, BAD_POINTER},
    {"ioctl TIOCLINUX, high bit", REFUSED, SYS_ioctl, -1, HIGH | 0x541C, BAD_POINTER},
    {"ioctl TIOCSETD, top bit", REFUSED, SYS_ioctl, -1, (long)(1UL << 63 | 0x5423), BAD_POINTER},
    {"ioctl 0x5411", PASSES, SYS_ioctl, -1, 0x5411},
    {"ioctl TIOCGWINSZ", PASSES, SYS_ioctl, -1, 0x5413},
    {"ioctl FIONREAD", PASSES, SYS_ioctl, -1, 0x541B},
    {"ioctl 0x541D", PASSES, SYS_ioctl, -1, 0x541D, .strict = REFUSED},
    {"ioctl 0x5422", PASSES, SYS_ioctl, -1, 0x5422},
    {"ioctl 0x5424", PASSES, SYS_ioctl, -1, 0x5424, .strict = REFUSED},
    {"ioctl TCGETS", PASSES, SYS_ioctl, -1, 0x5401},
    {"ioctl FIOCLEX", PASSES, SYS_ioctl, -1, 0x5451},
    {"ioctl SIOCGIFCONF", PASSES, SYS_ioctl, -1, 0x8912},
    {"ioctl FICLONE", PASSES, SYS_ioctl, -1, 0x40049409},
    {"socket inet6, high bit", SUCCEEDS, SYS_socket, HIGH | 10, 2, 0, .offline = NO_FAMILY},
    {"socket inet, datagram", SUCCEEDS, SYS_socket, 2, 2, 17, .offline = NO_FAMILY},
    {"socket inet, flags", SUCCEEDS, SYS_socket, 2, 1 | 02000000 | 04000, 6, .offline = NO_FAMILY},
    {"socketpair unix, bad pointer", PASSES, SYS_socketpair, 1, 1, 0, BAD_POINTER},
    /* What the default lets through, because jobs need it, and strict does not. Wrong arguments: the kernel complains of them. */
    {"socket inet, sctp", PASSES, SYS_socket, 2, 1, 132, .strict = REFUSED, .offline = NO_FAMILY, .dangerous = true},
    {"socket inet, mptcp", PASSES, SYS_socket, 2, 1, 262, .strict = REFUSED, .offline = NO_FAMILY, .dangerous = true},
    {"seccomp listener", PASSES, SYS_seccomp, 1, 8, BAD_POINTER, .strict = REFUSED, .dangerous = true},
    {"prctl seccomp", PASSES, SYS_prctl, 22, 2, BAD_POINTER, .strict = REFUSED, .dangerous = true},
    {"prctl seccomp, high bit", PASSES, SYS_prctl, HIGH | 22, 2, BAD_POINTER, .strict = REFUSED, .dangerous = true},
    {"prctl name", PASSES, SYS_prctl, 15, BAD_POINTER},
    {"inotify_init1", PASSES, SYS_inotify_init1, 1, .strict = REFUSED, .dangerous = true},
    {"shmget", PASSES, SYS_shmget, 0, 0, 0, .strict = REFUSED, .dangerous = true},
    {"semget", PASSES, SYS_semget, 0, -1, 0, .strict = REFUSED, .dangerous = true},
    {"msgget of nobody's", PASSES, SYS_msgget, 0x6a63, 0, .strict = REFUSED, .dangerous = true},
    {"mlockall", PASSES, SYS_mlockall, 99, .strict = REFUSED, .dangerous = true},
    {"execveat", PASSES, SYS_execveat, -1, BAD_POINTER, 0, 0, 0, .strict = REFUSED, .dangerous = true},
    {"splice", PASSES, SYS_splice, -1, 0, -1, 0, 1, 0, .strict = REFUSED, .dangerous = true},
    {"mincore", PASSES, SYS_mincore, 1, 1, BAD_POINTER, .strict = REFUSED, .dangerous = true},
    {"pidfd_send_signal", PASSES, 424, -1, 0, 0, 0, .strict = REFUSED, .dangerous = true},
    {"memfd_create", PASSES, SYS_memfd_create, BAD_POINTER, 0, .dangerous = true},
    {"setsockopt attach filter", PASSES, SYS_setsockopt, -1, 1, 26, BAD_POINTER, 16, .strict = REFUSED, .dangerous = true},
    {"setsockopt attach bpf, high bit", PASSES, SYS_setsockopt, -1, HIGH | 1, HIGH | 50, BAD_POINTER, 4, .strict = REFUSED, .dangerous = true},
    {"setsockopt netfilter tables", PASSES, SYS_setsockopt, -1, 0, 64, BAD_POINTER, 64, .strict = REFUSED, .dangerous = true},
    {"setsockopt tcp ulp", PASSES, SYS_setsockopt, -1, 6, 31, BAD_POINTER, 4, .strict = REFUSED, .dangerous = true},
    {"setsockopt reuse address", PASSES, SYS_setsockopt, -1, 1, 2, BAD_POINTER, 4},
    {"setsockopt keep-alive", PASSES, SYS_setsockopt, -1, 1, 9, BAD_POINTER, 4},
    {"setsockopt tcp nodelay", PASSES, SYS_setsockopt, -1, 6, 1, BAD_POINTER, 4},
    {"setsockopt v6 only", PASSES, SYS_setsockopt, -1, 41, 26, BAD_POINTER, 4},
    {"ioctl make a tun device", PASSES, SYS_ioctl, -1, 0x400454ca, BAD_POINTER, .strict = REFUSED, .dangerous = true},
    {"ioctl interface flags", PASSES, SYS_ioctl, -1, 0x8914, BAD_POINTER, .strict = REFUSED, .dangerous = true},
    {"ioctl userfaultfd", PASSES, SYS_ioctl, -1, 0xAA00, 0, .strict = REFUSED, .dangerous = true},
    {"ptrace seize 1", REFUSED, SYS_ptrace, 0x4206, 1, .trips = true},
    {"ptrace attach to 1, high bit", REFUSED, SYS_ptrace, HIGH | 16, 1, .trips = true},
    {"clone new mount namespace, high bit", REFUSED, SYS_clone, HIGH | CLONE_NEWNS | SIGCHLD, .trips = true},
    {"clone new uts namespace", REFUSED, SYS_clone, CLONE_NEWUTS | SIGCHLD, .trips = true},
    {"clone new ipc namespace", REFUSED, SYS_clone, CLONE_NEWIPC | SIGCHLD, .trips = true},
    {"unshare mount and net", REFUSED, SYS_unshare, CLONE_NEWNS | CLONE_NEWNET, .trips = true},
    {"unshare time", REFUSED, SYS_unshare, 0x80, .trips = true},
    /* Smaller doors. */
    {"personality no randomisation", REFUSED, SYS_personality, 0x0040000},
    {"personality linux32", REFUSED, SYS_personality, 8},
    {"personality read-implies-exec", REFUSED, SYS_personality, 0x0400000},
    {"personality ask", SUCCEEDS, SYS_personality, 0xffffffffL, .strict = REFUSED},
    {"mknod character device", REFUSED, SYS_mknod, BAD_POINTER, 0020666, 0x103},
    {"mknod block device", REFUSED, SYS_mknod, BAD_POINTER, 0060666, 0x103},
    {"mknodat block device", REFUSED, SYS_mknodat, -1, BAD_POINTER, 0060666, 0x103},
    {"mknodat fifo", PASSES, SYS_mknodat, -1, BAD_POINTER, 0010666, 0},
    {"sync is answered", SUCCEEDS, SYS_sync},
    {"syncfs is answered, also of no descriptor", SUCCEEDS, SYS_syncfs, -1},
    {"futex", PASSES, SYS_futex, BAD_POINTER, 0, 0},
    {"pidfd_open of nobody", PASSES, 434, -1, 0, .strict = REFUSED, .dangerous = true},
};

static const char *expect_name(enum expect e) {
  switch (e) {
  case SAME: return "?";
  case NO_FAMILY: return "no such family";
  case REFUSED: return "refused";
  case NOT_IMPLEMENTED: return "not implemented";
  case KILLED: return "killed";
  case PASSES: return "passes";
  case SUCCEEDS: return "succeeds";
  }
  return "?";
}

static enum expect expected(const struct try *t, const char *profile) {
  if (t->trips && !strcmp(profile, "tripwire")) return NOT_IMPLEMENTED;
  if (t->strict != SAME && !strcmp(profile, "strict")) return t->strict;
  if (t->offline != SAME && !strcmp(profile, "offline")) return t->offline;
  return t->expect;
}

/* Runs one try in a child. The child's answer comes through shared memory: an exit code is too small for an errno. */
static int run(const struct try *t, volatile long *answer) {
  *answer = 1L << 40; /* Nothing answers this. */
  fflush(stdout);
  pid_t child = fork();
  if (child < 0) {
    perror("fork");
    exit(2);
  }
  if (child == 0) {
    long a = t->a == -2 ? getppid() : t->a;
    long result = t->nr == CALL32 ? call32(t->a, t->b, t->c) : call(t->nr, a, t->b, t->c, t->d, t->e, t->f);
    /* A clone that got through has two of us here; both write the same kind of answer. */
    *answer = result;
    _exit(0);
  }
  int status;
  waitpid(child, &status, 0);
  return status;
}

int main(int argc, char **argv) {
  const struct profile *profile = NULL;
  for (unsigned i = 0; argc == 2 && i < sizeof profiles / sizeof *profiles; i++)
    if (!strcmp(argv[1], profiles[i].name)) profile = &profiles[i];
  if (!profile) {
    fprintf(stderr, "usage: %s default|offline|strict|tripwire\n", argv[0]);
    return 2;
  }
  volatile long *answer = mmap(NULL, sizeof *answer, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (answer == MAP_FAILED) {
    perror("mmap");
    return 2;
  }
  unsigned wrong = 0, dangerous = 0, reached = 0, total = sizeof tries / sizeof *tries;
  for (unsigned i = 0; i < total; i++) {
    const struct try *t = &tries[i];
    enum expect expect = expected(t, profile->name);
    int status = run(t, answer);
    int killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS;
    long got = *answer;
    int good = 0;
    switch (expect) {
    case SAME: break;
    case REFUSED: good = !killed && got == -EPERM; break;
    case NOT_IMPLEMENTED: good = !killed && got == -ENOSYS; break;
    case NO_FAMILY: good = !killed && got == -EAFNOSUPPORT; break;
    case KILLED: good = killed; break;
    case PASSES: good = !killed && got != -EPERM && got != -ENOSYS; break;
    case SUCCEEDS: good = !killed && got >= 0; break;
    }
    if (t->dangerous || (t->expect != PASSES && t->expect != SUCCEEDS)) {
      dangerous++;
      reached += !killed && got != -EPERM && got != -ENOSYS && got != -EAFNOSUPPORT;
    }
    wrong += !good;
    char what[64];
    if (WIFSIGNALED(status))
      snprintf(what, sizeof what, "killed by signal %d", WTERMSIG(status));
    else if (got < 0 && got > -4096)
      snprintf(what, sizeof what, "%s", strerrorname_np((int)-got) ? strerrorname_np((int)-got) : "unnamed errno");
    else
      snprintf(what, sizeof what, "%ld", got);
    printf("%s  %-38s must be %-16s got %s\n", good ? "ok   " : "WRONG", t->name, expect_name(expect), what);
  }
  if (reached > profile->most) {
    printf("WRONG  %u dangerous tries reach the kernel; at most %u may\n", reached, profile->most);
    wrong++;
  }
  printf("%u tries, %u wrong; %u are dangerous, %u of these reach the kernel\n", total, wrong, dangerous, reached);
  return wrong != 0;
}
