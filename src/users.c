/*-------------------------------------------------------------------------
 *
 * users.c
 *		How many connections each user has: changefeed.max_connections_per_user.
 *
 * A user is who the token's issuer says it is, the claim `sub`, with whatever
 * role; only where there is none it is the identity.  They are counted whether
 * there is a limit or not, so that one that is set later finds them.
 *
 * Process: feed worker.  Memory: registry_context; a user is there as long as
 * it has connections.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "users.h"

#include "common/hashfn.h"
#include "utils/hsearch.h"

typedef struct Place
{
	uint64 key; /* hash of the name */
	List *users;
} Place;

typedef struct CountedUser CountedUser;

/* Those with the same hash are told apart by their names. */
struct CountedUser
{
	char *name;
	int connections;
};

static HTAB *places;

static Place *
FindPlace(const char *name, HASHACTION action)
{
	uint64 key = hash_bytes_extended((const unsigned char *) name, strlen(name), 0);
	Place *place;
	bool found;

	if (places == NULL)
	{
		HASHCTL ctl = {0};

		ctl.keysize = sizeof(uint64);
		ctl.entrysize = sizeof(Place);
		ctl.hcxt = registry_context;
		places = hash_create("changefeed users", 256, &ctl, HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);
	}
	place = hash_search(places, &key, action, &found);
	if (place != NULL && !found)
		place->users = NIL;
	return place;
}

static CountedUser *
FindUser(const Place *place, const char *name)
{
	ListCell *lc;

	if (place == NULL)
		return NULL;
	foreach(lc, place->users)
	{
		CountedUser *user = lfirst(lc);

		if (strcmp(user->name, name) == 0)
			return user;
	}
	return NULL;
}

bool
UsersTake(Connection *connection, const IdentityInfo *info)
{
	char *name = info->subject != NULL ? psprintf("sub %s", info->subject)
									   : psprintf("%u %s", info->role, info->claims);
	CountedUser *user = FindUser(FindPlace(name, HASH_FIND), name);

	if (user != NULL && user == connection->user)
		return true;
	if (user != NULL && setting_max_connections_per_user > 0 &&
		user->connections >= setting_max_connections_per_user)
		return false;
	if (user == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(registry_context);
		Place *place = FindPlace(name, HASH_ENTER);

		user = palloc0(sizeof(CountedUser));
		user->name = pstrdup(name);
		place->users = lappend(place->users, user);
		MemoryContextSwitchTo(old);
	}
	UsersDrop(connection);
	connection->user = user;
	user->connections++;
	return true;
}

void
UsersDrop(Connection *connection)
{
	CountedUser *user = connection->user;
	Place *place;

	if (user == NULL)
		return;
	connection->user = NULL;
	if (--user->connections > 0)
		return;
	place = FindPlace(user->name, HASH_FIND);
	place->users = list_delete_ptr(place->users, user);
	if (place->users == NIL)
		hash_search(places, &place->key, HASH_REMOVE, NULL);
	pfree(user->name);
	pfree(user);
}
