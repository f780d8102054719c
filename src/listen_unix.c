/*-------------------------------------------------------------------------
 *
 * listen_unix.c
 *		The Unix socket that the gateways accept from.
 *
 * The file of a socket outlives a process that is killed, so it tells nothing.
 * Who may replace it is decided by a lock on another file beside it: the kernel
 * gives the lock back whatever becomes of its holder.  Behind the lock, a
 * socket that nobody answers on is a left-over and is removed; one that is
 * answered, and anything that is no socket, is somebody else's and stays.
 *
 * Process: feed worker.  Memory: none but static.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "listen_unix.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "storage/ipc.h"

#include "pg_changefeed.h"

static char socket_path[MAXPGPATH];
static char lock_path[MAXPGPATH];
static int lock_fd = -1;
static struct stat bound; /* the file that we made; st_ino 0: none */

static bool
SameFile(const struct stat *a, const struct stat *b)
{
	return a->st_dev == b->st_dev && a->st_ino == b->st_ino;
}

/*
 * Takes the lock.  Whoever held it before removes the file at the end, perhaps
 * between our open and our lock: then we hold a lock on nothing and try again.
 */
static bool
Lock(void)
{
	for (;;)
	{
		struct stat ours;
		struct stat named;

		lock_fd = open(lock_path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
		if (lock_fd < 0)
			return false;
		if (flock(lock_fd, LOCK_EX | LOCK_NB) < 0)
		{
			int reason = errno == EWOULDBLOCK ? EADDRINUSE : errno;

			close(lock_fd);
			lock_fd = -1;
			errno = reason;
			return false;
		}
		if (fstat(lock_fd, &ours) == 0 && stat(lock_path, &named) == 0 && SameFile(&ours, &named))
			return true;
		close(lock_fd);
		lock_fd = -1;
	}
}

/* Is a left-over, if there is anything, out of the way? */
static bool
RemoveStale(const struct sockaddr_un *address)
{
	struct stat state;
	int fd;
	int rc;
	int reason;

	if (lstat(socket_path, &state) < 0)
		return errno == ENOENT;
	if (!S_ISSOCK(state.st_mode))
	{
		errno = EEXIST;
		return false;
	}
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return false;
	rc = connect(fd, (const struct sockaddr *) address, sizeof(*address));
	reason = errno;
	close(fd);
	if (rc == 0 || reason != ECONNREFUSED)
	{
		errno = rc == 0 || reason == EAGAIN ? EADDRINUSE : reason;
		return false;
	}
	return unlink(socket_path) == 0 || errno == ENOENT;
}

static int
Bind(void)
{
	struct sockaddr_un address = {0};
	int fd;
	mode_t mask;
	int rc;

	address.sun_family = AF_UNIX;
	if (strlcpy(address.sun_path, setting_unix_socket, sizeof(address.sun_path)) >=
		sizeof(address.sun_path))
	{
		errno = ENAMETOOLONG;
		return -1;
	}
	if (!Lock() || !RemoveStale(&address))
		return -1;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
	if (fd < 0)
		return -1;

	/* At no moment may more than is meant to be connect. */
	mask = umask(0177);
	rc = bind(fd, (const struct sockaddr *) &address, sizeof(address));
	umask(mask);
	if (rc == 0 && lstat(socket_path, &bound) < 0)
		bound.st_ino = 0;
	if (rc < 0 || chmod(socket_path, (mode_t) setting_unix_socket_mode) < 0 || listen(fd, 4096) < 0)
	{
		int reason = errno;

		close(fd);
		errno = reason;
		return -1;
	}
	return fd;
}

static void
OnExit(int code, Datum arg)
{
	ListenUnixEnd();
}

int
ListenUnix(bool quiet)
{
	static bool registered;
	static int said; /* the errno that the log has */
	int fd;

	if (!registered)
		on_proc_exit(OnExit, (Datum) 0);
	registered = true;

	strlcpy(socket_path, setting_unix_socket, sizeof(socket_path));
	snprintf(lock_path, sizeof(lock_path), "%.*s.lock", MAXPGPATH - 6, socket_path);
	fd = Bind();
	if (fd >= 0)
		return fd;
	if (!quiet || errno != said)
	{
		bool taken = errno == EADDRINUSE;
		bool other = errno == EEXIST;

		said = errno;
		ereport(LOG, (errcode_for_socket_access(),
					  errmsg("could not listen on Unix socket \"%s\": %m", socket_path),
					  taken	  ? errhint("Another server listens there. Each database needs a "
										  "changefeed.unix_socket of its own.")
					  : other ? errhint("There is a file of this name that is no socket.")
							  : 0));
	}
	ListenUnixEnd();
	return -1;
}

/* The lock goes last: nobody looks at the socket without it. */
void
ListenUnixEnd(void)
{
	struct stat state;

	if (bound.st_ino != 0 && lstat(socket_path, &state) == 0 && SameFile(&state, &bound))
		(void) unlink(socket_path);
	bound.st_ino = 0;
	if (lock_fd < 0)
		return;
	(void) unlink(lock_path);
	close(lock_fd);
	lock_fd = -1;
}
