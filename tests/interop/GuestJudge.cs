using Xunit;

namespace BlockServer.Tests.Interop;

/// <summary>What the tests with a guest share: the kills of the daemon under the guest's load, the end of the load, and the
/// looks at what the guest had synced, from inside and from outside.</summary>
internal static class GuestJudge
{
    /// <summary>Starts the load on what is mounted at /mnt and kills the daemon four times under it, the last time with a
    /// look at its store. All that the guest said.</summary>
    public static List<string> LoadOverKills(Guest guest, Blockd blockd)
    {
        guest.Run("noise & putting f &");
        List<string> lines = guest.WaitFor("synced ", 4);
        for (int kill = 0; kill < 3; kill++)
        {
            blockd.Kill();
            blockd.Restart();
            lines.AddRange(guest.WaitFor("synced ", 4));
        }

        blockd.Kill();
        string sound = Blockd.Run(Path.Combine(Blockd.Root, "out", "pfinspect"), "verify", blockd.Store);
        Assert.EndsWith("\nsound\n", sound, StringComparison.Ordinal);
        blockd.Restart();
        return lines;
    }

    /// <summary>Ends the load: nothing of it broke, every synced file is there and the guest finds the file system clean.</summary>
    /// <param name="guest">The guest, with the file system at /mnt; it is unmounted afterwards.</param>
    /// <param name="lines">All that the guest said since the load began.</param>
    /// <param name="device">What is mounted.</param>
    /// <param name="mayFail">The kernel may have complained of errors: a path of several was taken from it.</param>
    /// <returns>Names and checksums of the synced files.</returns>
    public static Dictionary<string, string> End(Guest guest, List<string> lines, string device, bool mayFail = false)
    {
        lines.AddRange(guest.Run("touch /tmp/stop; wait; echo all ended").Split('\n', StringSplitOptions.TrimEntries));
        Assert.DoesNotContain(lines, line => line.StartsWith("broken", StringComparison.Ordinal));
        Dictionary<string, string> synced = SumsOf(lines, "synced");
        guest.Run("umount /mnt");
        JudgeFiles(guest, synced, device, mayFail);
        Assert.DoesNotContain("EXT4-fs error", guest.Run("dmesg"), StringComparison.Ordinal);
        return synced;
    }

    /// <summary>Mounts (which replays the journal), compares every synced file, unmounts and has the guest's fsck look.</summary>
    /// <param name="guest">The guest, with nothing mounted.</param>
    /// <param name="synced">Names and checksums.</param>
    /// <param name="device">What to mount.</param>
    /// <param name="mayFail">The kernel may have complained of errors: a path of several was taken from it.</param>
    public static void JudgeFiles(Guest guest, Dictionary<string, string> synced, string device, bool mayFail = false)
    {
        guest.Run($"mount {device} /mnt");
        Dictionary<string, string> found = SumsOf(guest.Run("sums").Split('\n'), "found");
        foreach ((string name, string sum) in synced)
        {
            Assert.True(found.TryGetValue(name, out string? now), $"{name} was synced and is not there");
            Assert.True(sum == now, $"{name} was synced with checksum {sum} and has {now}");
        }

        guest.Run($"umount /mnt && e2fsck -fn {device}");
        if (!mayFail) Assert.DoesNotContain("complaint: ", guest.Run("complaints; true"), StringComparison.Ordinal);
    }

    /// <summary>The host's own look at the file system, which the guest has left.</summary>
    public static void JudgeOutside(Blockd blockd)
    {
        string image = Path.Combine(blockd.Directory, "end.img");
        Blockd.Run("nbdcopy", blockd.UnixUri, image);
        Blockd.Run("/sbin/e2fsck", "-fn", image);
    }

    /// <summary>Names and checksums of the lines that begin with <paramref name="word"/>.</summary>
    public static Dictionary<string, string> SumsOf(IEnumerable<string> lines, string word) => lines
        .Select(line => line.Trim().Split(' '))
        .Where(words => words.Length == 3 && words[0] == word && words[2].Length == 32)
        .ToDictionary(words => words[1], words => words[2]);
}
