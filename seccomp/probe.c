/* Tries, from inside a cell, calls that seccomp/default.json must refuse, and calls that it must not.
 *
 * scripts/seccomp-check.sh compiles it static and runs it twice under the profile: as a job runs, and once more as root
 * with every capability ("privileged ids"), so that a refusal can only be the filter's and not the kernel's own check.
 * Therefore each try is harmless where it would get through: bad pointers, bad descriptors, magic numbers that are wrong.
 * Each runs in a child of its own, because some refusals kill. One line a try; exit code 1 if any differs from what it
 * must be. x86-64 Linux.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* What must happen. PASSES: it reaches the kernel, which may then say anything but EPERM, ENOSYS or death. */
enum expect { REFUSED, NOT_IMPLEMENTED, KILLED, PASSES, SUCCEEDS };

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
};

#define HIGH 0x100000000L /* Above what the kernel reads of a 32-bit argument. */
#define X32 0x40000000L
#define BAD_POINTER 1L
#define CALL32 (-1L) /* nr of tries that go by int 0x80: a is the number there, b and c its arguments. */

static const struct try tries[] = {
    /* Namespaces, mounts, other people's processes. */
    {"unshare user", REFUSED, SYS_unshare, CLONE_NEWUSER},
    {"unshare files only", REFUSED, SYS_unshare, CLONE_FILES},
    {"clone new user namespace", REFUSED, SYS_clone, CLONE_NEWUSER | SIGCHLD},
    {"clone new net namespace", REFUSED, SYS_clone, CLONE_NEWNET | SIGCHLD},
    {"clone new pid namespace", REFUSED, SYS_clone, CLONE_NEWPID | SIGCHLD},
    {"clone new cgroup namespace", REFUSED, SYS_clone, CLONE_NEWCGROUP | SIGCHLD},
    {"clone3", NOT_IMPLEMENTED, SYS_clone3, BAD_POINTER, 88},
    {"setns", REFUSED, SYS_setns, -1, 0},
    {"mount", REFUSED, SYS_mount, BAD_POINTER, BAD_POINTER, BAD_POINTER},
    {"umount2", REFUSED, SYS_umount2, BAD_POINTER, 0},
    {"pivot_root", REFUSED, SYS_pivot_root, BAD_POINTER, BAD_POINTER},
    {"chroot", REFUSED, SYS_chroot, BAD_POINTER},
    {"open_tree", REFUSED, 428, -1, BAD_POINTER, 0},
    {"move_mount", REFUSED, 429, -1, BAD_POINTER, -1, BAD_POINTER},
    {"fsopen", REFUSED, 430, BAD_POINTER, 0},
    {"fsconfig", REFUSED, 431, -1, 0},
    {"fsmount", REFUSED, 432, -1, 0},
    {"fspick", REFUSED, 433, -1, BAD_POINTER, 0},
    {"mount_setattr", REFUSED, 442, -1, BAD_POINTER, 0, BAD_POINTER, 32},
    {"ptrace traceme", REFUSED, SYS_ptrace, 0},
    {"ptrace attach to 1", REFUSED, SYS_ptrace, 16, 1},
    {"process_vm_readv", REFUSED, SYS_process_vm_readv, 1, BAD_POINTER, 1, BAD_POINTER, 1, 0},
    {"process_vm_writev", REFUSED, SYS_process_vm_writev, 1, BAD_POINTER, 1, BAD_POINTER, 1, 0},
    {"process_madvise", REFUSED, 440, -1, BAD_POINTER, 1, 0},
    {"process_mrelease", REFUSED, 448, -1, 0},
    {"kcmp", REFUSED, SYS_kcmp, 1, 1, 99},
    {"pidfd_getfd", REFUSED, 438, -1, 0, 0},
    {"get_robust_list of 1", REFUSED, SYS_get_robust_list, 1, BAD_POINTER, BAD_POINTER},
    {"move_pages", REFUSED, SYS_move_pages, 1, 0, BAD_POINTER, 0, BAD_POINTER, 0},
    {"migrate_pages", REFUSED, SYS_migrate_pages, 1, 0, BAD_POINTER, BAD_POINTER},
    /* Wide kernel interfaces. */
    {"bpf", REFUSED, SYS_bpf, 0, BAD_POINTER, 48},
    {"perf_event_open", REFUSED, SYS_perf_event_open, BAD_POINTER, 0, -1, -1, 0},
    {"keyctl", REFUSED, SYS_keyctl, 0, -3, 0},
    {"add_key", REFUSED, SYS_add_key, BAD_POINTER, BAD_POINTER, BAD_POINTER, 0, -3},
    {"request_key", REFUSED, SYS_request_key, BAD_POINTER, BAD_POINTER, BAD_POINTER, 0},
    {"userfaultfd", NOT_IMPLEMENTED, SYS_userfaultfd, 1},
    {"io_uring_setup", NOT_IMPLEMENTED, 425, 1, BAD_POINTER},
    {"io_uring_enter", NOT_IMPLEMENTED, 426, -1, 0, 0, 0},
    {"io_uring_register", NOT_IMPLEMENTED, 427, -1, 0, 0, 0},
    {"io_setup", NOT_IMPLEMENTED, SYS_io_setup, 1, BAD_POINTER},
    {"io_submit", NOT_IMPLEMENTED, SYS_io_submit, 0, 1, BAD_POINTER},
    {"fanotify_init", REFUSED, SYS_fanotify_init, 0, 0},
    {"open_by_handle_at", REFUSED, SYS_open_by_handle_at, -1, BAD_POINTER, 0},
    {"name_to_handle_at", REFUSED, SYS_name_to_handle_at, -1, BAD_POINTER, BAD_POINTER, BAD_POINTER, 0},
    {"lookup_dcookie", REFUSED, SYS_lookup_dcookie, 0, BAD_POINTER, 0},
    {"quotactl", REFUSED, SYS_quotactl, 0, BAD_POINTER, 0, BAD_POINTER},
    {"quotactl_fd", REFUSED, 443, -1, 0, 0, BAD_POINTER},
    {"vmsplice", REFUSED, SYS_vmsplice, -1, BAD_POINTER, 1, 0},
    {"tee", REFUSED, SYS_tee, -1, -1, 1, 0},
    {"remap_file_pages", REFUSED, SYS_remap_file_pages, 0, 0, 0, 0, 0},
    {"memfd_secret", REFUSED, 447, -1},
    {"modify_ldt", REFUSED, SYS_modify_ldt, 0, BAD_POINTER, 0},
    {"set_mempolicy", REFUSED, SYS_set_mempolicy, 99, 0, 0},
    {"mbind", REFUSED, SYS_mbind, 1, 1, 99, 0, 0, 0},
    {"mq_open", REFUSED, SYS_mq_open, BAD_POINTER, 0, 0, 0},
    /* The machine itself. */
    {"reboot", REFUSED, SYS_reboot, 1, 2, 3, 0},
    {"kexec_load", REFUSED, SYS_kexec_load, 0, 99, BAD_POINTER, 0},
    {"kexec_file_load", REFUSED, SYS_kexec_file_load, -1, -1, 0, BAD_POINTER, 0},
    {"init_module", REFUSED, SYS_init_module, BAD_POINTER, 1, BAD_POINTER},
    {"finit_module", REFUSED, SYS_finit_module, -1, BAD_POINTER, 0},
    {"delete_module", REFUSED, SYS_delete_module, BAD_POINTER, 0},
    {"swapon", REFUSED, SYS_swapon, BAD_POINTER, 0},
    {"swapoff", REFUSED, SYS_swapoff, BAD_POINTER},
    {"acct", REFUSED, SYS_acct, BAD_POINTER},
    {"syslog read", REFUSED, SYS_syslog, 3, BAD_POINTER, 1},
    {"iopl", REFUSED, SYS_iopl, 99},
    {"ioperm", REFUSED, SYS_ioperm, -1, 1, 1},
    {"settimeofday", REFUSED, SYS_settimeofday, BAD_POINTER, 0},
    {"clock_settime", REFUSED, SYS_clock_settime, 0, BAD_POINTER},
    {"adjtimex", REFUSED, SYS_adjtimex, BAD_POINTER},
    {"sethostname", REFUSED, SYS_sethostname, BAD_POINTER, 1},
    {"setdomainname", REFUSED, SYS_setdomainname, BAD_POINTER, 1},
    {"uselib", REFUSED, SYS_uselib, BAD_POINTER},
    {"ustat", REFUSED, SYS_ustat, 0, BAD_POINTER},
    {"sysfs", REFUSED, SYS_sysfs, 3},
    {"setfsuid, asking only", REFUSED, SYS_setfsuid, -1},
    /* Sockets: the four families, and every known way around. */
    {"socket unix", SUCCEEDS, SYS_socket, 1, 1, 0},
    {"socket inet", SUCCEEDS, SYS_socket, 2, 1, 0},
    {"socket netlink route", SUCCEEDS, SYS_socket, 16, 3, 0},
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
    {"ioprio_set of self", SUCCEEDS, SYS_ioprio_set, 1, 0, 0x6000},
    {"sched_setaffinity of 1", REFUSED, SYS_sched_setaffinity, 1, 8, BAD_POINTER},
    {"sched_setscheduler of 1", REFUSED, SYS_sched_setscheduler, 1, 0, BAD_POINTER},
    {"sched_setparam of 1", REFUSED, SYS_sched_setparam, 1, BAD_POINTER},
    {"sched_setattr of 1", REFUSED, SYS_sched_setattr, 1, BAD_POINTER, 0},
    {"sched_setaffinity of self", PASSES, SYS_sched_setaffinity, 0, 8, BAD_POINTER},
    {"sched_setscheduler of self", PASSES, SYS_sched_setscheduler, 0, 0, BAD_POINTER},
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
    {"ioctl 0x541D", PASSES, SYS_ioctl, -1, 0x541D},
    {"ioctl 0x5422", PASSES, SYS_ioctl, -1, 0x5422},
    {"ioctl 0x5424", PASSES, SYS_ioctl, -1, 0x5424},
    {"ioctl TCGETS", PASSES, SYS_ioctl, -1, 0x5401},
    {"ioctl FIOCLEX", PASSES, SYS_ioctl, -1, 0x5451},
    {"ioctl SIOCGIFCONF", PASSES, SYS_ioctl, -1, 0x8912},
    {"ioctl FICLONE", PASSES, SYS_ioctl, -1, 0x40049409},
    /* Smaller doors. */
    {"personality no randomisation", REFUSED, SYS_personality, 0x0040000},
    {"personality linux32", REFUSED, SYS_personality, 8},
    {"personality read-implies-exec", REFUSED, SYS_personality, 0x0400000},
    {"personality ask", SUCCEEDS, SYS_personality, 0xffffffffL},
    {"mknod character device", REFUSED, SYS_mknod, BAD_POINTER, 0020666, 0x103},
    {"mknod block device", REFUSED, SYS_mknod, BAD_POINTER, 0060666, 0x103},
    {"mknodat block device", REFUSED, SYS_mknodat, -1, BAD_POINTER, 0060666, 0x103},
    {"mknodat fifo", PASSES, SYS_mknodat, -1, BAD_POINTER, 0010666, 0},
    {"sync is answered", SUCCEEDS, SYS_sync},
    {"futex", PASSES, SYS_futex, BAD_POINTER, 0, 0},
    {"pidfd_open of nobody", PASSES, 434, -1, 0},
};

static const char *expect_name(enum expect e) {
  switch (e) {
  case REFUSED: return "refused";
  case NOT_IMPLEMENTED: return "not implemented";
  case KILLED: return "killed";
  case PASSES: return "passes";
  case SUCCEEDS: return "succeeds";
  }
  return "?";
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

int main(void) {
  volatile long *answer = mmap(NULL, sizeof *answer, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (answer == MAP_FAILED) {
    perror("mmap");
    return 2;
  }
  unsigned wrong = 0, refused = 0, total = sizeof tries / sizeof *tries;
  for (unsigned i = 0; i < total; i++) {
    const struct try *t = &tries[i];
    int status = run(t, answer);
    int killed = WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS;
    long got = *answer;
    int good = 0;
    switch (t->expect) {
    case REFUSED: good = !killed && got == -EPERM; break;
    case NOT_IMPLEMENTED: good = !killed && got == -ENOSYS; break;
    case KILLED: good = killed; break;
    case PASSES: good = !killed && got != -EPERM && got != -ENOSYS; break;
    case SUCCEEDS: good = !killed && got >= 0; break;
    }
    refused += t->expect == REFUSED || t->expect == NOT_IMPLEMENTED || t->expect == KILLED;
    wrong += !good;
    char what[64];
    if (WIFSIGNALED(status))
      snprintf(what, sizeof what, "killed by signal %d", WTERMSIG(status));
    else if (got < 0 && got > -4096)
      snprintf(what, sizeof what, "%s", strerrorname_np((int)-got) ? strerrorname_np((int)-got) : "unnamed errno");
    else
      snprintf(what, sizeof what, "%ld", got);
    printf("%s  %-38s must be %-16s got %s\n", good ? "ok   " : "WRONG", t->name, expect_name(t->expect), what);
  }
  printf("%u tries, %u of them must be refused, %u wrong\n", total, refused, wrong);
  return wrong != 0;
}
