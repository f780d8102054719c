/*-------------------------------------------------------------------------
 *
 * policy_rule.c
 *		Policies that the feed worker evaluates itself.
 *
 * Process: feed worker.  Memory: registry_context.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "policy_rule.h"

struct PolicyRule
{
	int refcount;
};

PolicyRule *
PolicyRuleIntern(Oid relid, const char *bytes, int length)
{
	return NULL;
}

void
PolicyRuleRelease(PolicyRule *rule)
{
}

void
PolicyRuleKeep(PolicyRule *rule)
{
}

Verdict
PolicyRuleJudge(PolicyRule *rule, TransactionMap *map, int image)
{
	return VERDICT_UNKNOWN;
}

int
PolicyRuleDemands(const PolicyRule *rule)
{
	return 0;
}

const PolicyDemand *
PolicyRuleDemand(const PolicyRule *rule, int number, const uint32 **hashes, int *nhashes)
{
	return NULL;
}

Verdict
PolicyRuleAlways(const PolicyRule *rule)
{
	return VERDICT_UNKNOWN;
}
