"""XenServer and XCP-ng: a level as a featureset."""
