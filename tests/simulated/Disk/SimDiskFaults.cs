using BlockServer.Core;

namespace BlockServer.Tests.Simulated.Disk;

/// <summary>
/// How a simulated disk misbehaves; probabilities are per request. <see cref="DrawHonest"/> gives only faults that a
/// store must survive without losing anything, <see cref="DrawLying"/> also those that destroy content, where only
/// "never wrong, never silent" can be asked.
/// </summary>
public sealed record SimDiskFaults
{
    /// <summary>No faults, quick answers.</summary>
    public static SimDiskFaults None { get; } = new();

    /// <summary>Shortest answer time.</summary>
    public ulong LatencyNanosMin { get; init; } = 1_000;

    /// <summary>Longest ordinary answer time.</summary>
    public ulong LatencyNanosMax { get; init; } = 200_000;

    /// <summary>A request takes 10 to 1,000 times as long.</summary>
    public double Slow { get; init; }

    /// <summary>A write fails with EIO; the range holds old, new or torn content.</summary>
    public double WriteError { get; init; }

    /// <summary>Part of the pages from <see cref="BadPagesFrom"/> on (but for the last two) that take no write, ever: EIO.</summary>
    public double BadPages { get; init; }

    /// <summary>First page that may be bad: behind what a store cannot do without.</summary>
    public const ulong BadPagesFrom = 1024;

    /// <summary>A write fails with ENOSPC (thin medium), likewise.</summary>
    public double NoSpace { get; init; }

    /// <summary>A flush fails; what was not durable is durable in part, the rest is gone.</summary>
    public double FlushError { get; init; }

    /// <summary>A read fails with EIO and would succeed the next time.</summary>
    public double ReadError { get; init; }

    /// <summary>A request is never answered; a write of it may still arrive in part.</summary>
    public double Hang { get; init; }

    /// <summary>A page becomes unreadable until it is rewritten, found by the read that draws it.</summary>
    public double LatentReadError { get; init; }

    /// <summary>One bit of a page changes on the medium, before the read that draws it.</summary>
    public double BitRot { get; init; }

    /// <summary>A write is answered Ok and not done.</summary>
    public double LostWrite { get; init; }

    /// <summary>A write is answered Ok and done at another place.</summary>
    public double MisdirectedWrite { get; init; }

    /// <summary>Rates of a disk that fails but does not lie.</summary>
    public static SimDiskFaults DrawHonest(IRandom random) => new()
    {
        LatencyNanosMax = 2_000 + random.NextBelow(random.NextChance(0.2) ? 20_000_000UL : 300_000UL),
        Slow = random.NextChance(0.3) ? 0.01 : 0,
        WriteError = random.NextChance(0.15) ? 0.002 : 0,
        NoSpace = random.NextChance(0.05) ? 0.001 : 0,
        FlushError = random.NextChance(0.15) ? 0.01 : 0,
        ReadError = random.NextChance(0.15) ? 0.005 : 0,
        Hang = random.NextChance(0.1) ? 0.0005 : 0,
        BadPages = random.NextChance(0.2) ? 0.01 : 0,
    };

    /// <summary>Rates of a disk that also loses, misplaces and rots.</summary>
    public static SimDiskFaults DrawLying(IRandom random) => DrawHonest(random) with
    {
        LatentReadError = random.NextChance(0.5) ? 0.003 : 0,
        BitRot = random.NextChance(0.5) ? 0.003 : 0,
        LostWrite = random.NextChance(0.4) ? 0.003 : 0,
        MisdirectedWrite = random.NextChance(0.4) ? 0.003 : 0,
    };
}
