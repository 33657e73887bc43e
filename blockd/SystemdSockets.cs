using System.Globalization;

namespace BlockServer.Blockd;

/// <summary>What systemd's socket activation hands over: listening sockets from descriptor 3 on, told in LISTEN_PID,
/// LISTEN_FDS and LISTEN_FDNAMES (sd_listen_fds(3)). All of them serve NBD.</summary>
internal static class SystemdSockets
{
    /// <summary>First descriptor that is handed over.</summary>
    public const int First = 3;

    private const int CountMax = 64;

    /// <summary>How many there are, 0 without activation; the variables are gone afterwards.</summary>
    public static int Take()
    {
        int count = Read(Environment.GetEnvironmentVariable, Environment.ProcessId);
        foreach (string name in new[] { "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES" }) Environment.SetEnvironmentVariable(name, null);
        return count;
    }

    /// <summary>The same of given variables. Throws <see cref="SettingException"/>.</summary>
    public static int Read(Func<string, string?> variable, int processId)
    {
        // Meant for another process: a parent that forgot to clear them.
        if (variable("LISTEN_PID") != processId.ToString(CultureInfo.InvariantCulture)) return 0;
        string text = variable("LISTEN_FDS") ?? "";
        if (!int.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out int count) || count > CountMax)
            throw new SettingException("LISTEN_FDS", text, $"0 to {CountMax} sockets");
        string names = variable("LISTEN_FDNAMES") ?? "";
        foreach (string name in names.Split(':'))
        {
            if (name is "api" or "iscsi")
                throw new SettingException("LISTEN_FDNAMES", names, "only NBD is served on inherited sockets");
        }

        return count;
    }
}
