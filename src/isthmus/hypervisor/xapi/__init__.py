"""XenServer and XCP-ng: a level as a featureset; pools asked and guests moved by XAPI."""
