/*-------------------------------------------------------------------------
 *
 * sandbox.c
 *		What the gateway can do once it talks to strangers.
 *
 * The gateway is the process that parses what anybody on the network sends, so
 * it gives away everything it does not need before it accepts the first
 * connection: it cannot open files, make or connect sockets, start programs,
 * look at or signal other processes, or make memory executable.  What it needs
 * (the link, listening sockets, snapshot files) comes as descriptors.
 *
 * A call that is not on the list fails with EPERM instead of killing us: a
 * call that we forgot becomes an error somebody can read.
 *
 * Process: gateway.
 *
 *-------------------------------------------------------------------------
 */
#include <errno.h>
#include <fcntl.h>
#include <seccomp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "gateway.h"

/* Allowed whatever the arguments are. */
static const char *const allowed[] = {
	/* the loop */
	"epoll_wait",
	"epoll_pwait",
	"epoll_pwait2",
	"epoll_ctl",
	"poll",
	"ppoll",
	/* sockets that we have */
	"accept4",
	"accept",
	"recvfrom",
	"recvmsg",
	"setsockopt",
	"getsockopt",
	"getpeername",
	"getsockname",
	/* descriptors that we have */
	"read",
	"readv",
	"write",
	"writev",
	"pread64",
	"close",
	"fstat",
	"lseek",
	/* memory */
	"brk",
	"munmap",
	"mremap",
	"madvise",
	/* time, identity, the rest of a libc's life */
	"clock_gettime",
	"clock_getres",
	"gettimeofday",
	"time",
	"nanosleep",
	"clock_nanosleep",
	"getpid",
	"gettid",
	"getrandom",
	"futex",
	"restart_syscall",
	"rt_sigreturn",
	"rt_sigprocmask",
	"rt_sigaction",
	"sigaltstack",
	"sched_yield",
	"exit",
	"exit_group",
};

static void
Check(int result)
{
	if (result < 0)
		GatewayFatal(EXIT_FAILED, "could not make the seccomp filter: %s", strerror(-result));
}

static void
AllowIf(scmp_filter_ctx filter, const char *name, unsigned int argument, scmp_datum_t mask,
		scmp_datum_t value)
{
	struct scmp_arg_cmp compare;
	int number = seccomp_syscall_resolve_name(name);

	if (number == __NR_SCMP_ERROR)
		return; /* not on this architecture */
	memset(&compare, 0, sizeof(compare));
	compare.arg = argument;
	compare.op = SCMP_CMP_MASKED_EQ;
	compare.datum_a = mask;
	compare.datum_b = value;
	Check(seccomp_rule_add_array(filter, SCMP_ACT_ALLOW, number, 1, &compare));
}

/*
 * Before the loop is made.  Newer versions of libuv make io_uring rings for it,
 * and what is asked through a ring is not seen by the filter.  They do without
 * one where the kernel has none.
 */
void
SandboxPrepare(void)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ALLOW);
	int number = seccomp_syscall_resolve_name("io_uring_setup");

	if (filter == NULL)
		GatewayFatal(EXIT_FAILED, "could not make the seccomp filter");
	if (number != __NR_SCMP_ERROR)
		Check(seccomp_rule_add(filter, SCMP_ACT_ERRNO(ENOSYS), number, 0));
	Check(seccomp_load(filter)); /* sets no_new_privs, too */
	seccomp_release(filter);
}

void
SandboxEnter(void)
{
	const scmp_datum_t all = 0xffffffff;
	scmp_filter_ctx filter;
	size_t i;
	int result;

#ifdef GATEWAY_DEBUG
	/* Leak checkers need calls that no gateway should have. */
	if (getenv("PG_CHANGEFEED_NO_SANDBOX") != NULL)
		return;
#endif

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		GatewayFatal(EXIT_FAILED, "could not set no_new_privs: %s", strerror(errno));

	filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	if (filter == NULL)
		GatewayFatal(EXIT_FAILED, "could not make the seccomp filter");

	for (i = 0; i < sizeof(allowed) / sizeof(allowed[0]); i++)
	{
		int number = seccomp_syscall_resolve_name(allowed[i]);

		if (number != __NR_SCMP_ERROR)
			Check(seccomp_rule_add(filter, SCMP_ACT_ALLOW, number, 0));
	}

	/* Memory, but not executable. */
	AllowIf(filter, "mmap", 2, PROT_EXEC, 0);
	AllowIf(filter, "mprotect", 2, PROT_EXEC, 0);

	/*
	 * A listening socket that is shut down for reading becomes one that is not
	 * connected, and sending with MSG_FASTOPEN connects one.  lws and we only end
	 * our own direction.
	 */
	AllowIf(filter, "sendto", 4, UINT64_MAX,
			0); /* without an address there is nothing to connect to */
	AllowIf(filter, "sendmsg", 2, MSG_FASTOPEN, 0);
	AllowIf(filter, "shutdown", 1, all, SHUT_WR);

	/* What non-blocking sockets need. */
	AllowIf(filter, "ioctl", 1, all, FIONBIO);
	AllowIf(filter, "ioctl", 1, all, FIONREAD);
	AllowIf(filter, "fcntl", 1, all, F_GETFL);
	AllowIf(filter, "fcntl", 1, all, F_SETFL);
	AllowIf(filter, "fcntl", 1, all, F_GETFD);
	AllowIf(filter, "fcntl", 1, all, F_SETFD);

	/* abort() */
	AllowIf(filter, "tgkill", 0, all, (scmp_datum_t) getpid());

	result = seccomp_load(filter);
	if (result < 0)
		GatewayFatal(EXIT_FAILED, "could not load the seccomp filter: %s", strerror(-result));
	seccomp_release(filter);
}
