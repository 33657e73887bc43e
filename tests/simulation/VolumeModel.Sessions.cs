namespace BlockServer.Tests.Simulation;

// What only a front end can know.
public sealed partial class VolumeModel
{
    /// <summary>The change was refused: it certainly did not happen, and nobody may ever see it.</summary>
    public void Never(ModelWrite write)
    {
        for (ulong s = write.FirstSector; s < write.FirstSector + write.Sectors; s++) _sectors[s]!.Remove(write);
    }
}
