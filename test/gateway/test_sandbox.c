/*-------------------------------------------------------------------------
 *
 * test_sandbox.c
 *		What somebody can do who has taken the gateway over: system calls that its
 *		process is made to do, once it has clients.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/ipc.h>
#include <sys/mman.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include "intrude.h"
#include "tests.h"

#define HIGHEST_FD 64

static int n_tried;
static int n_wrong;

static void
Expect(long got, const char *what)
{
	n_tried++;
	if (got == -EPERM)
		return;
	n_wrong++;
	Note("%s gave %ld", what, got);
}

#define TRY6(what, number, a, b, c, d, e, f) \
	Expect(IntrudeCall((number), (long) (a), (long) (b), (long) (c), (long) (d), (long) (e), \
					   (long) (f)), what)
#define TRY(what, number, a, b, c, d) TRY6(what, number, a, b, c, d, 0, 0)

static void
Verdict(const char *what)
{
	Ok(n_wrong == 0 && n_tried > 0, "it cannot %s: %d calls", what, n_tried);
	n_tried = n_wrong = 0;
}

static long
Text(const char *text)
{
	return IntrudePut(text, strlen(text) + 1);
}

static long
Zeros(size_t size)
{
	static const char zeros[4096];

	return IntrudePut(zeros, size);
}

static void
TryFiles(void)
{
	TRY("openat for reading", SYS_openat, AT_FDCWD, Text("/etc/passwd"), O_RDONLY, 0);
	TRY("openat for writing", SYS_openat, AT_FDCWD, Text("/tmp/x"), O_WRONLY | O_CREAT, 0600);
	TRY("openat of /proc", SYS_openat, AT_FDCWD, Text("/proc/self/environ"), O_RDONLY, 0);
	TRY("openat of a directory", SYS_openat, AT_FDCWD, Text("/"), O_RDONLY | O_DIRECTORY, 0);
	TRY("openat of a temporary file", SYS_openat, AT_FDCWD, Text("/tmp"), O_RDWR | O_TMPFILE, 0600);
#ifdef SYS_open
	TRY("open", SYS_open, Text("/etc/passwd"), O_RDONLY, 0, 0);
	TRY("creat", SYS_creat, Text("/tmp/x"), 0600, 0, 0);
	TRY("stat", SYS_stat, Text("/etc/passwd"), Zeros(256), 0, 0);
	TRY("readlink", SYS_readlink, Text("/proc/self/exe"), Zeros(256), 256, 0);
	TRY("unlink", SYS_unlink, Text("/tmp/x"), 0, 0, 0);
	TRY("rename", SYS_rename, Text("/tmp/x"), Text("/tmp/y"), 0, 0);
	TRY("chmod", SYS_chmod, Text("/tmp/x"), 0600, 0, 0);
#endif
#ifdef SYS_openat2
	TRY("openat2", SYS_openat2, AT_FDCWD, Text("/etc/passwd"), Zeros(24), 24);
#endif
	/* What is there, and since when, is nobody's business either. */
	TRY("newfstatat", SYS_newfstatat, AT_FDCWD, Text("/etc/passwd"), Zeros(256), 0);
	TRY("newfstatat with AT_EMPTY_PATH", SYS_newfstatat, AT_FDCWD, Text("/etc/passwd"), Zeros(256),
		AT_EMPTY_PATH);
	TRY6("statx", SYS_statx, AT_FDCWD, Text("/etc/passwd"), 0, STATX_BASIC_STATS, Zeros(256), 0);
	TRY("faccessat", SYS_faccessat, AT_FDCWD, Text("/etc/passwd"), R_OK, 0);
	TRY("statfs", SYS_statfs, Text("/"), Zeros(256), 0, 0);
	TRY("readlinkat", SYS_readlinkat, AT_FDCWD, Text("/proc/self/exe"), Zeros(256), 256);
	TRY("getcwd", SYS_getcwd, Zeros(256), 256, 0, 0);
	TRY("chdir", SYS_chdir, Text("/"), 0, 0, 0);
	TRY("chroot", SYS_chroot, Text("/"), 0, 0, 0);
	TRY("mkdirat", SYS_mkdirat, AT_FDCWD, Text("/tmp/x"), 0700, 0);
	TRY("mknodat", SYS_mknodat, AT_FDCWD, Text("/tmp/x"), S_IFIFO | 0600, 0);
	TRY("unlinkat", SYS_unlinkat, AT_FDCWD, Text("/tmp/x"), 0, 0);
	TRY("symlinkat", SYS_symlinkat, Text("/etc/passwd"), AT_FDCWD, Text("/tmp/x"), 0);
	TRY("linkat", SYS_linkat, AT_FDCWD, Text("/etc/passwd"), AT_FDCWD, Text("/tmp/x"));
	TRY("renameat2", SYS_renameat2, AT_FDCWD, Text("/tmp/x"), AT_FDCWD, Text("/tmp/y"));
	TRY("truncate", SYS_truncate, Text("/tmp/x"), 0, 0, 0);
	TRY("mount", SYS_mount, Text("none"), Text("/tmp"), Text("tmpfs"), 0);
	TRY("memfd_create", SYS_memfd_create, Text("x"), 0, 0, 0);
	TRY("inotify_init1", SYS_inotify_init1, 0, 0, 0, 0);
	TRY("name_to_handle_at", SYS_name_to_handle_at, AT_FDCWD, Text("/"), Zeros(128), Zeros(8));
	TRY("open_by_handle_at", SYS_open_by_handle_at, AT_FDCWD, Zeros(128), 0, 0);
	TRY("ftruncate", SYS_ftruncate, 2, 0, 0, 0);
	TRY("fchmod", SYS_fchmod, 2, 0666, 0, 0);
	TRY("sendfile", SYS_sendfile, 1, 0, 0, 4096);
	TRY("splice", SYS_splice, 0, 0, 1, 0);
	TRY("dup", SYS_dup, 0, 0, 0, 0);
	TRY("fcntl F_DUPFD", SYS_fcntl, 0, F_DUPFD, 0, 0);
	Verdict("open files, or look whether there are any");
}

/* Where the attacker would like to connect to */
static int
Trap(struct sockaddr_in *address)
{
	socklen_t length = sizeof(*address);
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);

	memset(address, 0, sizeof(*address));
	address->sin_family = AF_INET;
	address->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (fd < 0 || bind(fd, (struct sockaddr *) address, sizeof(*address)) < 0 || listen(fd, 8) < 0 ||
		getsockname(fd, (struct sockaddr *) address, &length) < 0)
		Die("could not listen");
	return fd;
}

static void
TrySockets(void)
{
	struct sockaddr_in address;
	struct sockaddr_un local = {.sun_family = AF_UNIX, .sun_path = "/tmp/.s.PGSQL.5432"};
	struct pollfd trap = {Trap(&address), POLLIN, 0};
	int fd;

	TRY("socket AF_INET", SYS_socket, AF_INET, SOCK_STREAM, 0, 0);
	TRY("socket AF_INET6", SYS_socket, AF_INET6, SOCK_STREAM, 0, 0);
	TRY("socket for datagrams", SYS_socket, AF_INET, SOCK_DGRAM, 0, 0);
	TRY("socket AF_UNIX", SYS_socket, AF_UNIX, SOCK_STREAM, 0, 0);
	TRY("socket AF_NETLINK", SYS_socket, AF_NETLINK, SOCK_RAW, 0, 0);
	TRY("socket AF_ALG", SYS_socket, AF_ALG, SOCK_SEQPACKET, 0, 0);
	TRY("socketpair", SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, Zeros(8));
	for (fd = 3; fd < HIGHEST_FD; fd++)
	{
		TRY("connect", SYS_connect, fd, IntrudePut(&address, sizeof(address)), sizeof(address), 0);
		TRY("connect to a Unix socket", SYS_connect, fd, IntrudePut(&local, sizeof(local)),
			sizeof(local), 0);
		TRY("bind", SYS_bind, fd, IntrudePut(&address, sizeof(address)), sizeof(address), 0);
		TRY("listen", SYS_listen, fd, 1, 0, 0);

		/*
		 * A listening socket that was shut down is one that is not connected, and
		 * sending with MSG_FASTOPEN connects.
		 */
		TRY("shutdown for reading", SYS_shutdown, fd, SHUT_RDWR, 0, 0);
		TRY6("sendto with MSG_FASTOPEN", SYS_sendto, fd, Text("x"), 1, MSG_FASTOPEN | MSG_DONTWAIT | MSG_NOSIGNAL,
			 IntrudePut(&address, sizeof(address)), sizeof(address));
		TRY6("sendto with an address", SYS_sendto, fd, Text("x"), 1, MSG_DONTWAIT | MSG_NOSIGNAL,
			 IntrudePut(&address, sizeof(address)), sizeof(address));
		{
			struct iovec part = {(void *) Text("x"), 1};
			struct msghdr message = {0};

			message.msg_name = (void *) IntrudePut(&address, sizeof(address));
			message.msg_namelen = sizeof(address);
			message.msg_iov = (void *) IntrudePut(&part, sizeof(part));
			message.msg_iovlen = 1;
			TRY("sendmsg with MSG_FASTOPEN", SYS_sendmsg, fd, IntrudePut(&message, sizeof(message)),
				MSG_FASTOPEN | MSG_DONTWAIT | MSG_NOSIGNAL, 0);
		}
	}
	Verdict("make or connect sockets");
	Ok(poll(&trap, 1, 200) == 0, "and nobody was connected to");
	close(trap.fd);
}

static void
TryProcesses(void)
{
	pid_t parent = getpid();
	struct iovec part = {0};
	long arguments;

	{
		long pointers[2] = {Text("/bin/true"), 0};

		arguments = IntrudePut(pointers, sizeof(pointers));
		TRY("execve", SYS_execve, pointers[0], arguments, 0, 0);
	}
	TRY6("execveat", SYS_execveat, AT_FDCWD, Text("/bin/true"), 0, 0, 0, 0);
	TRY6("execveat of a descriptor", SYS_execveat, 0, Text(""), 0, 0, AT_EMPTY_PATH, 0);
#ifdef SYS_fork
	TRY("fork", SYS_fork, 0, 0, 0, 0);
	TRY("vfork", SYS_vfork, 0, 0, 0, 0);
#endif
	TRY("clone", SYS_clone, SIGCHLD, 0, 0, 0);
	TRY("clone of a thread", SYS_clone, CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD, 0, 0,
		0);
#ifdef SYS_clone3
	TRY("clone3", SYS_clone3, Zeros(88), 88, 0, 0);
#endif
	Verdict("start programs, processes or threads");

	TRY("ptrace PTRACE_ATTACH", SYS_ptrace, PTRACE_ATTACH, parent, 0, 0);
	TRY("ptrace PTRACE_SEIZE", SYS_ptrace, PTRACE_SEIZE, parent, 0, 0);
	TRY6("process_vm_readv", SYS_process_vm_readv, parent, IntrudePut(&part, sizeof(part)), 1,
		 IntrudePut(&part, sizeof(part)), 1, 0);
	TRY6("process_vm_writev", SYS_process_vm_writev, parent, IntrudePut(&part, sizeof(part)), 1,
		 IntrudePut(&part, sizeof(part)), 1, 0);
	TRY("kill with 0", SYS_kill, parent, 0, 0, 0);
	TRY("kill", SYS_kill, parent, SIGUSR1, 0, 0);
	TRY("kill of a group", SYS_kill, 0, 0, 0, 0);
	TRY("tkill", SYS_tkill, parent, 0, 0, 0);
	TRY("tgkill of others", SYS_tgkill, parent, parent, 0, 0);
	TRY("rt_sigqueueinfo", SYS_rt_sigqueueinfo, parent, SIGUSR1, Zeros(128), 0);
	TRY("rt_tgsigqueueinfo", SYS_rt_tgsigqueueinfo, parent, parent, SIGUSR1, Zeros(128));
	TRY("fcntl F_SETOWN", SYS_fcntl, 3, F_SETOWN, parent, 0);
	TRY("fcntl F_SETSIG", SYS_fcntl, 3, F_SETSIG, SIGKILL, 0);
	TRY("ioctl FIOSETOWN", SYS_ioctl, 3, 0x8901, IntrudePut(&parent, sizeof(parent)), 0);
	TRY("ioctl TIOCSTI", SYS_ioctl, 2, 0x5412, Text("x"), 0);
	TRY("kcmp", SYS_kcmp, parent, parent, 0, 0);
	TRY("prlimit64", SYS_prlimit64, parent, 7, 0, Zeros(16));
	TRY("setpriority", SYS_setpriority, 0, parent, 19, 0);
	TRY("sched_setaffinity", SYS_sched_setaffinity, parent, 8, Zeros(8), 0);
	TRY("perf_event_open", SYS_perf_event_open, Zeros(128), parent, -1, -1);
#ifdef SYS_pidfd_open
	TRY("pidfd_open", SYS_pidfd_open, parent, 0, 0, 0);
	TRY("pidfd_send_signal", SYS_pidfd_send_signal, 0, 0, 0, 0);
#endif
#ifdef SYS_pidfd_getfd
	TRY("pidfd_getfd", SYS_pidfd_getfd, 0, 0, 0, 0);
#endif
#ifdef SYS_process_madvise
	TRY("process_madvise", SYS_process_madvise, 0, 0, 0, MADV_COLD);
#endif
	Verdict("look at other processes, or signal them");
}

static void
TryMemory(void)
{
	long page = IntrudePut("x", 1) & ~4095L;

	TRY6("mmap of memory to execute", SYS_mmap, 0, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
		 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TRY6("mmap to execute only", SYS_mmap, 0, 4096, PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TRY("mprotect of its stack", SYS_mprotect, page, 4096, PROT_READ | PROT_WRITE | PROT_EXEC, 0);
#ifdef SYS_pkey_mprotect
	TRY("pkey_mprotect", SYS_pkey_mprotect, page, 4096, PROT_READ | PROT_EXEC, -1);
#endif
	TRY("personality", SYS_personality, 0x0400000 /* READ_IMPLIES_EXEC */, 0, 0, 0);
	TRY("shmget", SYS_shmget, IPC_PRIVATE, 4096, IPC_CREAT | 0600, 0);
	TRY("shmat", SYS_shmat, 0, 0, 0, 0);
	TRY("userfaultfd", SYS_userfaultfd, 0, 0, 0, 0);
	Verdict("make memory that can be executed, or is shared with others");
}

static void
TryKernel(void)
{
	long ring = IntrudeCall(SYS_io_uring_setup, 1, Zeros(120), 0, 0, 0, 0);

	Ok(ring == -EPERM || ring == -ENOSYS, "it cannot make a ring: %ld", ring);
	TRY("io_uring_enter", SYS_io_uring_enter, 0, 0, 0, 0);
	TRY("bpf", SYS_bpf, 0, Zeros(128), 128, 0);
	TRY("keyctl", SYS_keyctl, 0, -3, 1, 0);
	TRY("add_key", SYS_add_key, Text("user"), Text("x"), Text("y"), 1);
	TRY("unshare", SYS_unshare, CLONE_NEWUSER, 0, 0, 0);
	TRY("setns", SYS_setns, 0, 0, 0, 0);
	TRY("prctl", SYS_prctl, 4 /* PR_SET_DUMPABLE */, 1, 0, 0);
	TRY("seccomp", SYS_seccomp, 0, 0, 0, 0);
	TRY("setuid", SYS_setuid, 0, 0, 0, 0);
	TRY("setresuid", SYS_setresuid, 0, 0, 0, 0);
	TRY("setgroups", SYS_setgroups, 0, 0, 0, 0);
	TRY("capset", SYS_capset, Zeros(8), Zeros(24), 0, 0);
	TRY("syslog", SYS_syslog, 3, Zeros(64), 64, 0);
	TRY("init_module", SYS_init_module, 0, 0, Text(""), 0);
	TRY("clock_settime", SYS_clock_settime, 0, Zeros(16), 0, 0);
	TRY("sethostname", SYS_sethostname, Text("x"), 1, 0, 0);
	Verdict("get at other parts of the kernel");
}

void
TestSandbox(void)
{
	Settings settings = DefaultSettings();
	Client *client;
	int status;

	if (getenv("PG_CHANGEFEED_NO_SANDBOX") != NULL)
	{
		Note("skipped: there is no sandbox in this run");
		return;
	}
	StartGateway(&settings);
	client = OpenSocket();
	if (!IntrudeBegin(worker.pid))
	{
		Note("skipped: this machine does not let us trace our own child: %s", strerror(errno));
		Disconnect(client);
		StopGateway();
		return;
	}
	Is((uint64_t) IntrudeCall(SYS_getpid, 0, 0, 0, 0, 0, 0), (uint64_t) worker.pid,
	   "the gateway does what it is made to");
	TryFiles();
	TrySockets();
	TryProcesses();
	TryMemory();
	TryKernel();
	IntrudeEnd();

	/* It was not harmed by the questions. */
	SendText(client->conn, "{\"still\":1}");
	IsText(ReadFrame(client).text, "{\"still\":1}", "it goes on for its client");
	Disconnect(client);
	client = OpenSocket();
	Disconnect(client);

#if defined(__x86_64__)
	/* Other tables of system calls have numbers that no filter for this one knows. */
	if (!IntrudeBegin(worker.pid))
		Die("could not stop the gateway again");
	IntrudeCall(0x40000000 + SYS_getpid, 0, 0, 0, 0, 0, 0);
	Is((uint64_t) IntrudeEnded(), SIGSYS, "it dies of calls by other tables (x32)");
	IntrudeEnd();
	LinkFrameDestroy(worker.link);
	DropKept();
	memset(&worker, 0, sizeof(worker));
	(void) status;
#else
	status = StopGateway();
	Is((uint64_t) status, 0, "it ends with 0");
#endif
}
