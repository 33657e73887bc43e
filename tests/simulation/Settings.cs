using System.Globalization;

namespace BlockServer.Tests.Simulation;

/// <summary>How much to try; from the environment, so that a long run needs no build.</summary>
public static class Settings
{
    /// <summary>Seeds, each run twice: BLOCKSERVER_SEEDS.</summary>
    public static int Seeds { get; } = Of("BLOCKSERVER_SEEDS", 2_000);

    /// <summary>Distinct crash states in all, half of them beside the seeds: BLOCKSERVER_CRASH_STATES.</summary>
    public static int CrashStates { get; } = Of("BLOCKSERVER_CRASH_STATES", 20_000);

    /// <summary>Crash states that a seed may try; some seeds have fewer occasions.</summary>
    public static int StatesPerSeed => Math.Max(1, CrashStates / 2 * 3 / 2 / Math.Max(1, Seeds));

    /// <summary>Seeds after which a broken rule counts as not found: BLOCKSERVER_BROKEN_SEEDS.</summary>
    public static int BrokenSeeds { get; } = Of("BLOCKSERVER_BROKEN_SEEDS", 600);

    /// <summary>Seeds of whole sessions, each run twice: BLOCKSERVER_SESSION_SEEDS.</summary>
    public static int SessionSeeds { get; } = Of("BLOCKSERVER_SESSION_SEEDS", SessionSeedsDefault);

    /// <summary>So many show everything at least once.</summary>
    public const int SessionSeedsDefault = 80;

    private static int Of(string name, int otherwise) =>
        int.TryParse(Environment.GetEnvironmentVariable(name), CultureInfo.InvariantCulture, out int value) ? value : otherwise;
}
