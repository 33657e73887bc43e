using BlockServer.Core;

namespace BlockServer.Tests.Simulation;

/// <summary>What to simulate; null: drawn from the seed.</summary>
public sealed record SimulationOptions
{
    /// <summary>The store under test.</summary>
    public required StoreDriver Driver { get; init; }

    /// <summary>Durability mode.</summary>
    public Durability? Durability { get; init; }

    /// <summary>Let the disk lie (rot, lost and misdirected writes).</summary>
    public bool? LyingDisk { get; init; }

    /// <summary>Faults of the disk at all; false: only crashes.</summary>
    public bool DiskFaults { get; init; } = true;

    /// <summary>Run on the small medium, where space is reused soon.</summary>
    public bool? SmallDisk { get; init; }

    /// <summary>Snapshots, clones and what goes with them.</summary>
    public bool? Layers { get; init; }

    /// <summary>Append-only volumes beside the others. Seeds without them are what they are without them.</summary>
    public bool Appends { get; init; }

    /// <summary>Volumes are promised room. Seeds without promises are what they are without them.</summary>
    public bool Promises { get; init; }

    /// <summary>Processes that live one after another on the medium.</summary>
    public int Lives { get; init; } = 4;

    /// <summary>Requests of one life at most.</summary>
    public int RequestsPerLife { get; init; } = 150;

    /// <summary>Power-cut states tried beside the run itself: each is a fork of the medium that is opened and judged.</summary>
    public int CrashStates { get; init; }

    /// <summary>How likely such states are tried when the medium has changed.</summary>
    public double CrashStateChance { get; init; } = 0.5;
}
