using System.CommandLine;
using System.Globalization;
using BlockServer.Core;

namespace BlockServer.Pfcli;

/// <summary>support_bundle: what somebody who helps needs to know, in one file.</summary>
internal static class SupportCommand
{
    public static void AddTo(CommandSet commands)
    {
        var output = new Option<string>("--output", "-o") { Description = "File to write (.tar.gz); it must not exist", HelpName = "FILE", Required = true };
        commands.Add("support_bundle", "Writes what somebody who helps needs to know: state, settings, log, disks; no content of volumes, no secrets", [output], async (context, cancel) =>
        {
            string path = context.Get(output)!;
            if (File.Exists(path)) throw new CliException($"'{path}' exists; choose another name");
            string part = path + ".part";
            try
            {
                long length;
                using (Stream source = await context.Client.OpenAsync("v1/support", cancel))
                {
                    // Readable by its owner only: it is for who is asked for help, not for everybody here.
                    await using var file = new FileStream(part, new FileStreamOptions
                    {
                        Mode = FileMode.Create, Access = FileAccess.Write, UnixCreateMode = UnixFileMode.UserRead | UnixFileMode.UserWrite,
                    });
                    await source.CopyToAsync(file, cancel);
                    length = file.Length;
                }

                File.Move(part, path, overwrite: false);
                context.Printer.Line(string.Create(CultureInfo.InvariantCulture, $"Wrote {path}, {SizeText.Format((ulong)length)}. Look into it before you give it away: tar tzf {path}"));
                return ExitCode.Done;
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or HttpRequestException)
            {
                throw new CliException($"the bundle could not be written to '{path}' ({e.Message})", inner: e);
            }
            finally
            {
                File.Delete(part);
            }
        },
        "pfcli support_bundle -o support.tar.gz");
    }
}
