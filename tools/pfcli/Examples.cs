namespace BlockServer.Pfcli;

/// <summary>Examples of commands that bring none themselves: one or two lines each are enough.</summary>
internal static class Examples
{
    private static readonly Dictionary<string, string[]> s_all = new(StringComparer.Ordinal)
    {
        ["delete_volume"] = ["pfcli delete_volume -v old", "pfcli delete_volume -v old --snapshots --yes           # in a script"],
        ["check_volume_exists"] = ["pfcli check_volume_exists -v db || pfcli create_volume -v db -s 128g"],
        ["list_volume"] = ["pfcli list_volume", "pfcli list_volume --json"],
        ["show_volume"] = ["pfcli show_volume -v db"],
        ["resize_volume"] = ["pfcli resize_volume -v db -s 256g"],
        ["rename_volume"] = ["pfcli rename_volume -v db -n db-2025"],
        ["export_volume"] = ["pfcli export_volume -v db", "pfcli export_volume -v db --iscsi --read-only", "pfcli export_volume -v db --nbd --nbd-clients 'CN=web-*' unix"],
        ["unexport_volume"] = ["pfcli unexport_volume -v db --nbd"],
        ["list_disk"] = ["pfcli list_disk", "pfcli list_disk --json"],
        ["list_store"] = ["pfcli list_store"],
        ["add_disk"] = ["pfcli add_disk /dev/nvme1n1", "pfcli add_disk /srv/blocks.img -s 500g -n spare"],
        ["remove_disk"] = ["pfcli remove_disk spare"],
        ["list_session"] = ["pfcli list_session -v db"],
        ["drop_session"] = ["pfcli drop_session 17 --yes"],
        ["list_reservation"] = ["pfcli list_reservation"],
        ["clear_reservation"] = ["pfcli clear_reservation -v db"],
        ["list_policy"] = ["pfcli list_policy"],
        ["delete_policy"] = ["pfcli delete_policy -p hourly"],
        ["list_target"] = ["pfcli list_target"],
        ["show_target"] = ["pfcli show_target -t iqn.2026-11.org.example:disks"],
        ["list_portal"] = ["pfcli list_portal"],
        ["create_target"] = ["pfcli create_target -t iqn.2026-11.org.example:disks"],
        ["delete_target"] = ["pfcli delete_target -t iqn.2026-11.org.example:disks"],
        ["enable_target"] = ["pfcli enable_target -t iqn.2026-11.org.example:disks"],
        ["disable_target"] = ["pfcli disable_target -t iqn.2026-11.org.example:disks"],
        ["move_target"] = ["pfcli move_target -t iqn.2026-11.org.example:disks -g 2"],
        ["remove_lun"] = ["pfcli remove_lun -t iqn.2026-11.org.example:disks -l 8"],
        ["allow_initiator"] = ["pfcli allow_initiator -t iqn.2026-11.org.example:disks -i 'iqn.2026-11.org.example:host*' -a 10.0.0.0/24"],
        ["deny_initiator"] = ["pfcli deny_initiator -t iqn.2026-11.org.example:disks -i 'iqn.2026-11.org.example:host*'"],
        ["add_chap_user"] = ["pfcli add_chap_user -t iqn.2026-11.org.example:disks -u host1"],
        ["remove_chap_user"] = ["pfcli remove_chap_user -t iqn.2026-11.org.example:disks -u host1"],
        ["list_token"] = ["pfcli list_token"],
        ["delete_token"] = ["pfcli delete_token -n backup"],
        ["allow"] = ["pfcli allow --initiator iqn.1993-08.org.debian:01:abc"],
        ["list_denied"] = ["pfcli list_denied"],
        ["list_tenant"] = ["pfcli list_tenant", "pfcli list_tenant --json"],
        ["show_tenant"] = ["pfcli show_tenant -t acme"],
        ["delete_tenant"] = ["pfcli delete_tenant -t acme"],
        ["show_discovery"] = ["pfcli show_discovery"],
        ["top"] = ["pfcli top", "pfcli top -v db -c 10 -i 5"],
    };

    /// <summary>The examples of a command.</summary>
    public static string[] Of(string command) => s_all.GetValueOrDefault(command, []);
}
